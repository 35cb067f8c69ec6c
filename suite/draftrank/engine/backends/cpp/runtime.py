"""Models on a CPU, by kernels of our own that are compiled for the machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch

from draftrank.engine.backends.base import Capabilities, check_exit, check_layers
from draftrank.engine.backends.caching import FINAL, CachingRuntime, KeptStates
from draftrank.engine.backends.cpp.decoder import MAX_TOKENS, CppDecoder
from draftrank.engine.backends.eagle import OfferedStates
from draftrank.engine.backends.kv_cache import RollbackCache
from draftrank.models.architecture import Architecture
from draftrank.models.vocabulary import check_ids

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from draftrank.engine.token_tree import Branch, TokenTree, TreeWidth


class CppRuntime(CachingRuntime):
    """See `Runtime`; logits are fp32. `CppDecoder.fits` says which models can be given."""

    name: ClassVar[str] = "cpp"
    _cache: RollbackCache

    def __init__(
        self,
        model: PreTrainedModel,
        decoder: CppDecoder | None = None,
        cache: RollbackCache | None = None,
    ) -> None:
        """Wraps a model, or the layers of it that a decoder has; a KV cache may be shared.

        Raises:
            InvalidInputError: the kernels cannot be compiled.
        """
        config = model.config.get_text_config()
        self.model = model
        self.vocabulary_size = int(config.vocab_size)
        self._decoder = decoder or CppDecoder(model)
        self.context_window = self._decoder.context_window
        self._cache = cache or RollbackCache.of_depth(int(config.num_hidden_layers), self._decoder.zeros)
        self._states = KeptStates(int(config.hidden_size), torch.device("cpu"))
        self._state_capabilities()

    def _state_capabilities(self) -> None:
        drafts = self._decoder.whole and not set(self._states.by_layer) - {FINAL}
        self.capabilities = Capabilities(
            trees=True,
            hidden_states=True,
            first_layers=True,
            chain=drafts,
            chain_stops=drafts,
            tree_growth=drafts,
        )

    @torch.inference_mode()
    def forward(
        self, tokens: Sequence[int], keep: int | None = None, tree: TokenTree | None = None
    ) -> Tensor:
        count, kept = len(tokens), self._states.by_layer
        wanted = keep or count
        beside = self._beside(count)
        self._states.begin(count)
        if self._decoder.whole and count <= MAX_TOKENS and (count == wanted or not kept):
            logits, final = self._decoder.read(tokens, self._cache, wanted, tree, kept, beside)
            if kept:
                kept[FINAL] = final
            return logits
        check_ids(tokens, self.vocabulary_size)
        hidden = self._decoder.run(self._inputs(tokens, beside), self._cache, tree, kept)
        if kept and not self._decoder.paired:
            kept[FINAL] = self._decoder.normed(hidden)
            states = kept[FINAL][count - wanted :].contiguous()
        else:
            states = self._decoder.normed(hidden[count - wanted :].contiguous())
            if kept:
                kept[FINAL] = hidden
        return self._decoder.logits(states)

    def _beside(self, count: int) -> Tensor | None:
        """What the next tokens are read beside, [count, hidden]; None: nothing."""
        return None

    def _inputs(self, tokens: Sequence[int], beside: Tensor | None) -> Tensor:
        """What the first layer reads, [tokens, hidden]."""
        return self._decoder.embedded(tokens)

    @torch.inference_mode()
    def commit(self, root: int, path: Sequence[int]) -> None:
        self._states.commit(self.length - root, path)
        self._decoder.keep(self._cache, root, path)

    def keep_hidden_states(self, layers: Sequence[int] = ()) -> None:
        check_layers(layers, len(self._cache.layers))
        self._states.keep([FINAL, *layers])
        self._state_capabilities()

    def first_layers(self, count: int) -> CppRuntime:
        check_exit(count, len(self._cache.layers))
        view = Architecture.of(self.model).first_layers(self.model, count)
        return CppRuntime(view, self._decoder.first(count, view), self._cache.first(count))

    @torch.inference_mode()
    def chain(self, unseen: Sequence[int], count: int, stop_below: float | None = None) -> list[int]:
        rest = self._read_all_but_the_last(unseen)
        chosen, state = self._decoder.chain(rest, self._cache, count, stop_below, self._beside(len(rest)))
        self._note(state)
        return chosen

    @torch.inference_mode()
    def grow_tree(self, unseen: Sequence[int], count: int, width: TreeWidth) -> tuple[list[Branch], int]:
        rest = self._read_all_but_the_last(unseen)
        told, forwards, state = self._decoder.grow_tree(
            rest, self._cache, count, width, self._beside(len(rest))
        )
        self._note(state)
        return told, forwards

    def _read_all_but_the_last(self, unseen: Sequence[int]) -> Sequence[int]:
        """Reads what does not fit one call of the kernels; returns the rest."""
        if len(unseen) > MAX_TOKENS:
            self.forward(unseen[:-MAX_TOKENS], keep=1)
        return unseen[-MAX_TOKENS:]

    def _note(self, state: Tensor) -> None:
        """Keeps the one state that a call has left."""
        self._states.begin(len(state))
        if self._states.by_layer:
            self._states.by_layer[FINAL] = state


class CppEagleRuntime(OfferedStates, CppRuntime):
    """See `EagleHead`."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._begin_head(model)
        self._product, self._read = self._decoder.product_of(self._fusion.fc), self._fusion.fc.in_features

    @torch.inference_mode()
    def reduced(self, states: Tensor) -> Tensor:
        return self._product(states[:, : self._read])

    def _inputs(self, tokens: Sequence[int], beside: Tensor | None) -> Tensor:
        assert beside is not None
        # Nothing is rounded in between, so that a long forward gives the bits of several short ones.
        return torch.cat([self._decoder.embedded(tokens).float(), beside], -1)

    def _read_all_but_the_last(self, unseen: Sequence[int]) -> Sequence[int]:
        offered = self._offered
        if len(unseen) <= MAX_TOKENS or offered is None:
            return super()._read_all_but_the_last(unseen)
        self.offer(offered[:-MAX_TOKENS])
        rest = super()._read_all_but_the_last(unseen)
        self.offer(offered[-MAX_TOKENS:])
        return rest
