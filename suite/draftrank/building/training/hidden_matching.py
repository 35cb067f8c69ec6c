"""How far the draft's layers are from the target's layers they were made from."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from draftrank.errors import BuildError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from draftrank.building.working_draft import WorkingDraft
    from draftrank.models.architecture import Architecture


class HiddenMatching:
    """Listens to the layers of both models while they run; use it as a context around their forwards.

    The distance is the mean over layers of |ours - theirs|² / |theirs|², as in TinyBERT's hidden loss
    (Jiao et al. 2019, arXiv:1909.10351), but relative, so that its weight means the same in any layer.
    """

    def __init__(self, draft: WorkingDraft, target: PreTrainedModel, target_shape: Architecture) -> None:
        kept = draft.notes.get("kept_layers")
        layers = draft.architecture.layers(draft.model)
        if kept is None or len(kept) != len(layers):
            raise BuildError(
                "hidden_weight needs to know which of the target's layers the draft's come from: put drop_layers "
                "before distill and nothing else that changes the depth"
            )
        if draft.model.config.hidden_size != target.config.hidden_size:
            raise BuildError("hidden_weight needs the target's hidden size: leave prune_hidden out")
        theirs = target_shape.layers(target)
        self._watched = [*layers, *(theirs[index] for index in kept)]
        self._seen: dict[int, Tensor] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> HiddenMatching:
        self._seen.clear()
        self._handles = [
            module.register_forward_hook(self._observer(index)) for index, module in enumerate(self._watched)
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def distance(self) -> Tensor:
        """The distance of the last forwards, a scalar with its graph."""
        depth = len(self._watched) // 2
        parts = []
        for index in range(depth):
            ours, theirs = self._seen[index].float(), self._seen[depth + index].detach().float()
            parts.append((ours - theirs).square().mean() / theirs.square().mean().clamp(min=1e-12))
        self._seen.clear()
        return torch.stack(parts).mean()

    def _observer(self, index: int) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def observe(_: nn.Module, _arguments: tuple[Any, ...], output: Any) -> None:
            self._seen[index] = output if isinstance(output, Tensor) else output[0]

        return observe
