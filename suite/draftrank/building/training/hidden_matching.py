"""How far the draft's layers are from the target's layers they were made from."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from draftrank.building.working_draft import WorkingDraft
    from draftrank.models.architecture import Architecture


class HiddenMatching(ExitStack):
    """Listens to the layers of both models while they run; use it as a context around their forwards.

    The distance is the mean over layers of |ours - theirs|² / |theirs|², as in TinyBERT's hidden loss
    (Jiao et al. 2019, arXiv:1909.10351), but relative, so that its weight means the same in any layer.
    """

    def __init__(self, draft: WorkingDraft, target: PreTrainedModel, target_shape: Architecture) -> None:
        """The draft's notes say which of the target's layers its own were (`drop_layers`)."""
        super().__init__()
        layers, theirs = draft.architecture.layers(draft.model), target_shape.layers(target)
        self._watched = [*layers, *(theirs[index] for index in draft.notes["kept_layers"])]
        self._seen: dict[int, Tensor] = {}

    def __enter__(self) -> Self:
        self._seen.clear()
        for index, module in enumerate(self._watched):
            self.enter_context(module.register_forward_hook(partial(self._observe, index)))
        return self

    def distance(self) -> Tensor:
        """The distance of the last forwards, a scalar with its graph."""
        depth = len(self._watched) // 2
        parts = []
        for index in range(depth):
            ours, theirs = self._seen[index].float(), self._seen[depth + index].detach().float()
            parts.append((ours - theirs).square().mean() / theirs.square().mean().clamp(min=1e-12))
        self._seen.clear()
        return torch.stack(parts).mean()

    def _observe(self, index: int, _: nn.Module, _arguments: tuple[Any, ...], output: Any) -> None:
        self._seen[index] = output if isinstance(output, Tensor) else output[0]
