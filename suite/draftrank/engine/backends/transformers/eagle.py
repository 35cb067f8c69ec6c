"""A draft that reads hidden states beside tokens, run eagerly by torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from draftrank.engine.backends.packed_product import Product
from draftrank.engine.backends.transformers.runtime import TorchRuntime
from draftrank.models.architecture import Architecture
from draftrank.models.forms import FEATURES, HiddenStateFusion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from draftrank.engine.backends.short_forward import ShortForward
    from draftrank.engine.backends.transformers.cache import RollbackCache
    from draftrank.engine.token_tree import Branch, TokenTree, TreeWidth


class EagleRuntime(TorchRuntime):
    """See `engine.runtime.Runtime`. What is fed reads the features that were offered for it; without any, a single
    token reads the state of the one before it, one of a tree that of its parent, and several in a row read nothing."""

    def __init__(
        self,
        model: PreTrainedModel,
        cache: RollbackCache | None = None,
        *,
        short: ShortForward | None = None,
    ) -> None:
        super().__init__(model, cache, short=short)
        self._shape = Architecture.of(model)
        fusion = model.get_submodule(FEATURES)
        assert isinstance(fusion, HiddenStateFusion)
        self._fusion: HiddenStateFusion = fusion
        project, reduce = self._fusion.projection, self._fusion.reduction
        self._project: Product = project if short is None else short.product_of(project)
        self._reduce: Product = self._fusion.reduce
        if short is not None and reduce is not None:
            self._reduce = self._reduction_by(short, reduce)
        self._offered: Tensor | None = None
        self._of_tree: list[Tensor] = []
        """States of the tree so far, by place; of a chain's last token if there is none."""
        self.keep_hidden_states()

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of the target whose outputs are read beside its final states."""
        return self._fusion.layers

    @torch.inference_mode()
    def reduced(self, states: Tensor) -> Tensor:
        """What of the target's states is offered: [tokens, (layers + 1) · hidden] to [tokens, hidden]."""
        return self._reduce(states)

    def offer(self, features: Tensor) -> None:
        """Features [tokens, hidden] for exactly the tokens of the next feed."""
        self._offered = features

    def feed(self, tokens: Sequence[int], keep: int | None = None) -> Tensor:
        """See `Runtime.feed`."""
        logits = super().feed(tokens, keep)
        self._of_tree = [self.hidden_states()[-1]]
        return logits

    def feed_tree(self, tokens: Sequence[int], tree: TokenTree) -> Tensor:
        """See `TreeRuntime.feed_tree`."""
        known = len(tree.parents) - len(tokens)
        if self._offered is None and known:
            self.offer(torch.stack([self._of_tree[parent] for parent in tree.parents[known:]]))
        logits = super().feed_tree(tokens, tree)
        self._of_tree = [*self._of_tree[:known], *self.hidden_states()]
        return logits

    def chain(self, unseen: Sequence[int], count: int, stop_below: float | None = None) -> list[int] | None:
        """See `ChainRuntime.chain`."""
        offered = self._offered
        found = super().chain(unseen, count, stop_below)
        if found is None:
            self._offered = offered
        return found

    def branch(self, unseen: Sequence[int], count: int, width: TreeWidth) -> tuple[list[Branch], int] | None:
        """See `BranchingRuntime.branch`."""
        offered = self._offered
        found = super().branch(unseen, count, width)
        if found is None:
            self._offered = offered
        return found

    def _reduction_by(self, short: ShortForward, reduction: nn.Linear) -> Product:
        in_one = short.evened_product_of(reduction, len(self.layers) + 1)
        product = short.product_of(reduction)
        return in_one or (lambda states: product(self._fusion.evened(states)))

    def _beside(self, fed: int) -> Tensor:
        features, self._offered = self._offered, None
        if features is None:
            own = self.hidden_states()[-1:]
            features = own if fed == 1 and len(own) else torch.zeros(fed, self._width, device=self._device)
        return features

    def _read(self, ids: Tensor, fed: int) -> dict[str, Tensor]:
        features = self._beside(fed)
        rows = ids.shape[1]
        if rows > fed:
            features = torch.cat([features, features[-1:].expand(rows - fed, -1)])
        embedded = self._shape.embedding(self.model)(ids)[0]
        read = self._project(self._fusion.beside(embedded, features))
        return {"inputs_embeds": read.to(embedded.dtype)[None]}

    @property
    def _width(self) -> int:
        return int(self.model.config.get_text_config().hidden_size)
