"""Any causal language model that transformers opens, by its own forward, on CPU or CUDA."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property, partial
from inspect import signature
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from draftrank.engine.backends.base import Capabilities, check_exit, check_layers
from draftrank.engine.backends.caching import FINAL, CachingRuntime, KeptStates
from draftrank.engine.backends.eagle import OfferedStates
from draftrank.engine.backends.kv_cache import RollbackCache
from draftrank.engine.backends.transformers.attention import NAME, use_grouped_attention
from draftrank.engine.backends.transformers.snapshot_cache import SnapshotCache, cache_for, keeps_every_token
from draftrank.errors import BuildError, IncompatibleDraftError, UnsupportedModelError
from draftrank.models.architecture import Architecture
from draftrank.models.architecture_checks import short_logits
from draftrank.models.attention_windows import attention_windows, cache_argument, context_window
from draftrank.models.depth import sublayers
from draftrank.models.vocabulary import check_ids

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from draftrank.engine.token_tree import TokenTree


def padded_rows(count: int) -> int:
    """How many rows to multiply instead of `count`.

    MKL's single-precision product takes longer with two or three rows (or any three beyond a multiple of
    four) than with the next multiple of four: measured for a 135M model, 65 and 76 ms against 59.
    """
    return count + 4 - count % 4 if count == 2 or count % 4 == 3 else count


def has_slow_row_counts(model: PreTrainedModel) -> bool:
    """Whether the model's matrices are multiplied by MKL in single precision."""
    head = model.get_output_embeddings()
    plain = isinstance(head, torch.nn.Linear) and head.weight.dtype == torch.float32
    return plain and bool(torch.backends.mkl.is_available())  # type: ignore[no-untyped-call]


def tree_windows(model: PreTrainedModel) -> dict[str, int | None]:
    """See `attention_windows`; of a model that can read trees.

    Raises:
        UnsupportedModelError: it cannot.
    """
    config = model.config.get_text_config()
    if not keeps_every_token(config):
        raise UnsupportedModelError(
            f"layers of {config.model_type} keep a state that follows one chain of tokens, so trees of tokens cannot be read: use "
            "drafts that propose chains (leave branch_above_probability out)"
        )
    if "position_ids" not in signature(model.forward).parameters or getattr(config, "alibi", False):
        raise UnsupportedModelError(
            f"{config.model_type} takes the distance of two tokens from the order in which they are read, so trees of "
            "tokens cannot be read: use drafts that propose chains (leave branch_above_probability out)"
        )
    return attention_windows(config)


class TransformersRuntime(CachingRuntime):
    """See `Runtime`; logits keep the model's dtype and device.

    Models whose layers keep a state that no token can be taken from have a `SnapshotCache`, which tells what their rollback
    costs. They read chains only.
    """

    name: ClassVar[str] = "transformers"

    def __init__(self, model: PreTrainedModel, cache: RollbackCache | None = None) -> None:
        """Wraps a model on its device; a KV cache may be shared."""
        use_grouped_attention(model)
        config = model.config.get_text_config()
        self.model = model
        self.vocabulary_size = int(config.vocab_size)
        # Without a limit of its own a target declares one.
        self.context_window = context_window(config) or sys.maxsize
        self._device = next(iter(model.parameters())).device
        self._cache = cache or cache_for(config)
        self._argument = cache_argument(model)
        self._arguments = frozenset(signature(model.forward).parameters)
        self._reads_singly = self._pads = False
        kept = isinstance(self._cache, RollbackCache)
        if kept:
            self._pads = self._device.type == "cpu" and has_slow_row_counts(model)
        self.capabilities = Capabilities(trees=kept, hidden_states=True, first_layers=kept)
        self._fastest = attention = model.config._attn_implementation
        attentions = (
            (NAME, model.get_correct_attn_implementation(None)) if attention == NAME else (attention,)
        )
        self._ways = iter([*product(attentions, (False,) if kept else (False, True))][1:])
        self._states = KeptStates(int(config.hidden_size), self._device)

    @torch.inference_mode()
    def forward(
        self, tokens: Sequence[int], keep: int | None = None, tree: TokenTree | None = None
    ) -> Tensor:
        check_ids(tokens, self.vocabulary_size)
        if tree is not None:
            return self._forward_tree(tokens, tree)
        cache, start = self._cache, self._cache.length
        if isinstance(cache, SnapshotCache):
            if again := cache.unread:
                cache.read_again()
                self._read(again, 1, start - len(again))
            cache.begin(tokens)
        return self._read(tokens, keep or len(tokens), start)

    def compute_otherwise(self) -> bool:
        """See `Runtime.compute_otherwise`.

        Some models of transformers ask whether attention has one of its own names, and some recurrent layers forget their
        state when they read several tokens: these are then read one by one.
        """
        found = next(self._ways, None)
        if found is None:
            return False
        attention, self._reads_singly = found
        self.model.set_attn_implementation(attention)
        told = [f"attention by {attention}"] if attention != self._fastest else []
        self.fallback = ", ".join([*told, *(["tokens read one by one"] if self._reads_singly else [])])
        return True

    def _read(self, tokens: Sequence[int], wanted: int, start: int) -> Tensor:
        """Logits after the last `wanted` tokens, of which the first stands at `start`."""
        if self._reads_singly and start:
            rows, states = [], []
            for index, token in enumerate(tokens):
                rows.append(self._call([token], 1, start + index))
                states.append(dict(self._states.by_layer))
            self._states.join(states)
            return torch.cat(rows)[-wanted:]
        return self._call(tokens, wanted, start)

    def _call(self, tokens: Sequence[int], wanted: int, start: int) -> Tensor:
        count = len(tokens)
        rows = padded_rows(count) if self._pads else count
        if start + rows > self.context_window:
            rows = count
        ids = torch.tensor([[*tokens, *([tokens[-1]] * (rows - count))]], device=self._device)
        inputs = self._inputs(ids, count)
        self._states.begin(count)
        # A slice of the last rows keeps the stride of all: oneDNN then converts the whole bf16 head first.
        chosen = rows if wanted == count else torch.arange(count - wanted, count, device=self._device)
        if isinstance(self._cache, SnapshotCache) and "position_ids" in self._arguments:
            # Some hybrid models would count positions from 0 again.
            inputs["position_ids"] = torch.arange(start, start + rows, device=self._device)[None]
        output = self.model(**inputs, **self._cached(chosen))
        if rows > count:
            self._cache.rollback(rows - count)
        logits: Tensor = (
            output.logits[0, :wanted]
            if "logits_to_keep" in self._arguments
            else output.logits[0, count - wanted : count]
        )
        return logits

    def _cached(self, chosen: int | Tensor) -> dict[str, Any]:
        """What every forward is told besides its tokens: the cache, and after which tokens logits are wanted."""
        told: dict[str, Any] = {self._argument or "past_key_values": self._cache, "use_cache": True}
        return told | ({"logits_to_keep": chosen} if "logits_to_keep" in self._arguments else {})

    def _forward_tree(self, tokens: Sequence[int], tree: TokenTree) -> Tensor:
        count, known = len(tokens), len(tree.parents) - len(tokens)
        root = self._cache.length - known
        inputs = self._inputs(torch.tensor([tokens], device=self._device), count)
        self._states.begin(count)
        masks = {
            kind: self._mask(tree.visible(root, window, self._device)[None, None, known:])
            for kind, window in self._windows.items()
        }
        output = self.model(
            **inputs,
            attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
            position_ids=root + torch.tensor([tree.depths[known:]], device=self._device),
            **self._cached(count),
        )
        logits: Tensor = output.logits[0]
        return logits

    @cached_property
    def _windows(self) -> dict[str, int | None]:
        return tree_windows(self.model)

    def _mask(self, visible: Tensor) -> Tensor:
        """A mask in the form that the model's attention takes: bool, or what is added to the scores."""
        if self.model.config._attn_implementation != "eager":
            return visible
        added = torch.zeros(visible.shape, dtype=self.model.dtype, device=self._device)
        return added.masked_fill(~visible, torch.finfo(self.model.dtype).min)

    def _inputs(self, ids: Tensor, count: int) -> dict[str, Tensor]:
        """What the model is called with: ids [1, rows], of which the first `count` are tokens."""
        return {"input_ids": ids}

    @torch.inference_mode()
    def commit(self, root: int, path: Sequence[int]) -> None:
        self._states.commit(self.length - root, path)
        self._cache.keep(root, path)

    def synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def keep_hidden_states(self, layers: Sequence[int] = ()) -> None:
        shape = Architecture.of(self.model)
        modules = shape.layers(self.model)
        check_layers(layers, len(modules))
        for layer in self._states.keep([FINAL, *layers]):
            module = shape.norm(self.model) if layer == FINAL else modules[layer]
            module.register_forward_hook(partial(self._keep_output, layer))

    def _keep_output(
        self, layer: int, _module: object, _inputs: object, output: Tensor | tuple[Tensor, ...]
    ) -> None:
        found = output[0] if isinstance(output, tuple) else output
        self._states.by_layer[layer] = found[0]

    def first_layers(self, count: int) -> TransformersRuntime:
        each = sublayers(self.model.config.get_text_config())
        check_exit(count, len(self._cache.layers) // each)
        assert isinstance(self._cache, RollbackCache)
        view = Architecture.of(self.model).first_layers(self.model, count)
        try:
            short_logits(view)
        except BuildError as error:
            raise IncompatibleDraftError(
                f"the first layers of this {view.config.model_type} model do not run alone, since other parts of it are made for "
                "all layers: use another draft"
            ) from error
        return TransformersRuntime(view, self._cache.first(count * each))


class TransformersEagleRuntime(OfferedStates, TransformersRuntime):
    """See `EagleHead`."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._begin_head(model)
        self.keep_hidden_states((0,))

    def _own_states(self) -> Tensor:
        return self.hidden_states((0,)).chunk(2, -1)[0]

    @torch.inference_mode()
    def reduced(self, states: Tensor) -> Tensor:
        return self._fusion.reduce(states)

    def _inputs(self, ids: Tensor, count: int) -> dict[str, Tensor]:
        states, rows = self._beside(count), ids.shape[1]
        if rows > count:
            states = torch.cat([states, states[-1:].expand(rows - count, -1)])
        embedded = self.model.get_input_embeddings()(ids)[0]
        return {"inputs_embeds": self._fusion(embedded, states)[None]}
