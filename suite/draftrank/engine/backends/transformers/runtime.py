"""Any transformers causal language model, run eagerly by torch on CPU or CUDA.

Its forward is transformers' own, or, for short ones and where that is asked for, the same in fewer calls
(`fused_decoder`) or in kernels of our own (`native`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property, partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import torch

from draftrank.engine.backends.cpp.decoder import NativeDecoder
from draftrank.engine.backends.short_forward import MAX_TOKENS, ShortForward
from draftrank.engine.backends.transformers.attention import use_grouped_attention
from draftrank.engine.backends.transformers.cache import RollbackCache, zeros
from draftrank.engine.backends.transformers.fused_decoder import FusedDecoder
from draftrank.engine.runtime import check_layers
from draftrank.errors import InvalidInputError, UnsupportedModelError
from draftrank.models.architecture import Architecture
from draftrank.models.attention_windows import attention_windows
from draftrank.models.loading import load_model
from draftrank.models.vocabulary import check_ids

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from draftrank.engine.token_tree import Branch, TokenTree, TreeWidth


Forward = Literal["eager", "fused", "native"]
"""How short forwards run."""

_FINAL = -1
"""In the place of a layer's number: the states after the final norm."""


def padded_rows(count: int) -> int:
    """How many rows to multiply instead of `count`.

    MKL's single-precision product takes longer with two or three rows (or any three beyond a multiple of
    four) than with the next multiple of four: measured for a 135M model, 65 and 76 ms against 59.
    """
    return count + 4 - count % 4 if count == 2 or count % 4 == 3 else count


def has_slow_row_counts(model: PreTrainedModel) -> bool:
    """Whether the model's matrices are multiplied by MKL in single precision."""
    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    plain = isinstance(weight, torch.Tensor) and weight.dtype == torch.float32
    return plain and bool(torch.backends.mkl.is_available())  # type: ignore[no-untyped-call]


class TorchRuntime:
    """A model with a static cache of its own; see `engine.runtime.Runtime`."""

    def __init__(
        self,
        model: PreTrainedModel,
        cache: RollbackCache | None = None,
        *,
        short: ShortForward | None = None,
    ) -> None:
        """Wraps a model.

        Args:
            model: the model, on its device.
            cache: a cache to share; None: its own.
            short: the model's layers, to run short forwards through; None: transformers runs all.
        """
        use_grouped_attention(model)
        self.name: str = "transformers" if short is None else short.runtime
        self._short = short
        config = model.config.get_text_config()
        self.model = model
        self.vocabulary_size = int(config.vocab_size)
        # A configuration without a limit is one of biases by distance (ALiBi); a target then declares its own.
        self.context_window = int(getattr(config, "max_position_embeddings", None) or sys.maxsize)
        self._device = next(iter(model.parameters())).device
        self._pads = self._device.type == "cpu" and has_slow_row_counts(model)
        room = zeros if short is None else short.zeros
        self._cache = cache or RollbackCache.of_depth(int(config.num_hidden_layers), room)
        self._fed = 0
        self._states: dict[int, Tensor] = {}
        """What is remembered of the last feed, by layer."""
        self._path: list[int] | None = None
        """Places of the last feed that stand, where they are not the first ones."""

    @classmethod
    def load(
        cls,
        folder: Path,
        dtype: Literal["fp32", "bf16", "fp16"],
        device: Literal["cpu", "cuda"],
        *,
        forward: Forward = "eager",
    ) -> Self:
        """Loads a Hugging Face folder, in the form its build asks for."""
        return cls.of(load_model(folder, dtype, device), forward=forward)

    @classmethod
    def of(cls, model: PreTrainedModel, forward: Forward) -> Self:
        """Wraps a model. Where its forward is not known as it is asked for, a slower one is taken: `fused` for
        `native`, `eager` for all.

        Raises:
            InvalidInputError: native forwards are asked for and cannot be compiled.
        """
        return cls(model, short=_short_forward(model, forward))

    @property
    def length(self) -> int:
        """See `Runtime.length`."""
        return self._cache.length

    def reserve(self, tokens: int) -> None:
        """See `Runtime.reserve`."""
        self._cache.reserve(tokens)

    @torch.inference_mode()
    def feed(self, tokens: Sequence[int], keep: int | None = None) -> Tensor:
        """See `Runtime.feed`; the logits keep the model's dtype and device."""
        fed, wanted = len(tokens), keep or len(tokens)
        if self._reads_at_once(fed, wanted):
            return self._read_at_once(tokens, wanted)
        check_ids(tokens, self.vocabulary_size)
        rows = padded_rows(fed) if self._pads else fed
        if self._cache.length + rows > self.context_window:
            rows = fed
        ids = torch.tensor([[*tokens, *([tokens[-1]] * (rows - fed))]], device=self._device)
        read = self._read(ids, fed)
        self._fed, self._path = fed, None
        if self._short is not None and (rows <= MAX_TOKENS or self._short.reads_prompts):
            logits = self._short_logits(self._short, read, fed, wanted)
        else:
            # A slice of the last rows keeps the stride of all: oneDNN then converts the whole bf16 head first.
            chosen = rows if wanted == fed else torch.arange(fed - wanted, fed, device=self._device)
            output = self.model(**read, past_key_values=self._cache, use_cache=True, logits_to_keep=chosen)
            logits = output.logits[0, :wanted]
        if rows > fed:
            self._cache.forget(rows - fed)
        return logits

    @torch.inference_mode()
    def feed_tree(self, tokens: Sequence[int], tree: TokenTree) -> Tensor:
        """See `TreeRuntime.feed_tree`; the logits keep the model's dtype and device."""
        fed, known = len(tokens), len(tree.parents) - len(tokens)
        places = len(tree.parents)
        if places <= MAX_TOKENS and self._reads_at_once(fed, fed):
            return self._read_at_once(tokens, fed, tree)
        check_ids(tokens, self.vocabulary_size)
        root = self._cache.length - known
        read = self._read(torch.tensor([tokens], device=self._device), fed)
        self._fed, self._path = fed, None
        if self._short is not None and places <= MAX_TOKENS:
            return self._short_logits(self._short, read, fed, fed, tree)
        assert self._short is None or not self._short.reads_prompts, (
            "its cache is its own, see `NativeDecoder`"
        )
        masks = {
            kind: self._mask(tree.visible(root, window, self._device)[None, None, known:])
            for kind, window in self._windows.items()
        }
        output = self.model(
            **read,
            attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
            position_ids=root + torch.tensor([tree.depths[known:]], device=self._device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=fed,
        )
        logits: Tensor = output.logits[0]
        return logits

    @cached_property
    def _windows(self) -> dict[str, int | None]:
        """See `attention_windows`; of a model that can read trees."""
        config = self.model.config.get_text_config()
        if "position_ids" not in signature(self.model.forward).parameters or getattr(config, "alibi", False):
            raise UnsupportedModelError(
                f"{config.model_type} takes the distance of two tokens from the order in which they are read, so trees of "
                "tokens cannot be read: use drafts that propose chains (leave branch_above_probability out)"
            )
        return attention_windows(config)

    def _mask(self, visible: Tensor) -> Tensor:
        """A mask in the form that the model's attention takes: bool, or what is added to the scores."""
        if self.model.config._attn_implementation != "eager":
            return visible
        added = torch.zeros(visible.shape, dtype=self.model.dtype, device=self._device)
        return added.masked_fill(~visible, torch.finfo(self.model.dtype).min)

    @torch.inference_mode()
    def chain(self, unseen: Sequence[int], count: int, stop_below: float | None = None) -> list[int] | None:
        """See `ChainRuntime.chain`."""
        if self._short is None or set(self._states) - {_FINAL}:
            return None
        found = self._short.chain(unseen, self._cache, count, stop_below, self._beside(len(unseen)))
        if found is None:
            return None
        chosen, state = found
        self._remember(state)
        return chosen

    @torch.inference_mode()
    def branch(self, unseen: Sequence[int], count: int, width: TreeWidth) -> tuple[list[Branch], int] | None:
        """See `BranchingRuntime.branch`."""
        if self._short is None or set(self._states) - {_FINAL}:
            return None
        found = self._short.branch(unseen, self._cache, count, width, self._beside(len(unseen)))
        if found is None:
            return None
        told, forwards, state = found
        self._remember(state)
        return told, forwards

    def _remember(self, states: Tensor) -> None:
        self._fed, self._path = len(states), None
        if self._states:
            self._states[_FINAL] = states

    def _beside(self, fed: int) -> Tensor | None:
        """What the next tokens are read beside, [fed, hidden]; None: nothing."""
        return None

    @torch.inference_mode()
    def keep_path(self, root: int, places: Sequence[int]) -> None:
        """See `TreeRuntime.keep_path`."""
        fed_at_once = self._fed == self._cache.length - root
        if self._short is None:
            self._cache.keep(root, places)
        else:
            self._short.keep(self._cache, root, places)
        if fed_at_once:
            self._path = None if list(places) == list(range(len(places))) else list(places)
            self._fed = len(places)

    def _reads_at_once(self, fed: int, wanted: int) -> bool:
        """Whether one call does, which tells final states of what is wanted alone."""
        return (
            self._short is not None
            and self._short.reads_at_once(fed)
            and (fed == wanted or _FINAL not in self._states)
        )

    def _read_at_once(self, tokens: Sequence[int], wanted: int, tree: TokenTree | None = None) -> Tensor:
        assert self._short is not None
        beside = self._beside(len(tokens))
        logits, final = self._short.read(tokens, self._cache, wanted, tree, self._states, beside)
        self._fed, self._path = len(tokens), None
        if self._states:
            self._states[_FINAL] = final
        return logits

    def _short_logits(
        self,
        short: ShortForward,
        read: dict[str, Tensor],
        fed: int,
        wanted: int,
        tree: TokenTree | None = None,
    ) -> Tensor:
        inputs = read["inputs_embeds"] if "inputs_embeds" in read else short.embedded(read["input_ids"])
        hidden = short.run(inputs[0], self._cache, tree, self._states)
        if self._states:
            self._states[_FINAL] = short.normed(hidden)
            states = self._states[_FINAL][fed - wanted : fed].contiguous()
        else:
            states = short.normed(hidden[fed - wanted : fed])
        return short.logits(states)

    def _read(self, ids: Tensor, fed: int) -> dict[str, Tensor]:
        """What the model is called with: ids [1, rows], of which the first `fed` count."""
        return {"input_ids": ids}

    def keep_hidden_states(self, layers: Sequence[int] = ()) -> None:
        """See `HiddenStateRuntime.keep_hidden_states`."""
        shape = Architecture.of(self.model)
        check_layers(layers, len(shape.layers(self.model)))
        places = {_FINAL: shape.norm(self.model)}
        places |= {layer: shape.layers(self.model)[layer] for layer in layers}
        width = int(self.model.config.get_text_config().hidden_size)
        for place, module in places.items():
            if place not in self._states:
                self._states[place] = torch.zeros((0, width), device=self._device)
                module.register_forward_hook(partial(self._keep_states, place))

    def _keep_states(
        self, place: int, _module: object, _inputs: object, output: Tensor | tuple[Tensor, ...]
    ) -> None:
        found = output[0] if isinstance(output, tuple) else output
        self._states[place] = found[0]

    def hidden_states(self, layers: Sequence[int] = ()) -> Tensor:
        """See `HiddenStateRuntime.features`."""
        assert _FINAL in self._states, "keep_hidden_states was not called"
        found = [self._states[place] for place in (*layers, _FINAL)]
        states = found[0] if len(found) == 1 else torch.cat(found, -1)
        return states[: self._fed] if self._path is None else states[self._path]

    def forget(self, count: int) -> None:
        """See `Runtime.forget`."""
        self._cache.forget(count)

    def reset(self) -> None:
        """See `Runtime.reset`."""
        self._cache.reset()

    def synchronize(self) -> None:
        """See `Runtime.synchronize`."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def first_layers(self, count: int) -> TorchRuntime:
        """See `LayeredRuntime.first_layers`.

        Raises:
            InvalidInputError: the model has not more than `count` layers.
        """
        depth = len(self._cache.layers)
        if count >= depth:
            raise InvalidInputError.single(
                f"the target has {depth} layers, so an exit after {count} leaves nothing out",
                field="draft.layers",
                fix=f"use at most {depth - 1}",
            )
        view = Architecture.of(self.model).first_layers(self.model, count)
        short = None if self._short is None else self._short.first(count, view)
        return TorchRuntime(view, self._cache.first(count), short=short)


def _short_forward(model: PreTrainedModel, forward: Forward) -> ShortForward | None:
    if forward == "native" and NativeDecoder.fits(model):
        return NativeDecoder(model)
    if forward in ("fused", "native") and FusedDecoder.fits(model):
        return FusedDecoder(model)
    return None
