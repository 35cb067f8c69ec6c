"""What of a draft is trained, and how."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from draftrank.models.architecture import Architecture

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from draftrank.building.working_draft import WorkingDraft


def unfreeze(model: PreTrainedModel, shape: Architecture, *, with_head: bool) -> dict[str, nn.Parameter]:
    """Lets a model train, its embedding and head only where asked for; returns what trains, by name."""
    model.requires_grad_(True)
    if not with_head:
        shape.embedding(model).requires_grad_(False)
        shape.head(model).requires_grad_(False)
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms and biases do not."""
    found = list(parameters)
    return [
        {"params": [one for one in found if one.ndim >= 2], "weight_decay": weight_decay},
        {"params": [one for one in found if one.ndim < 2], "weight_decay": 0.0},
    ]


def zeros_of(draft: WorkingDraft) -> dict[str, Tensor]:
    """Where weights of a sparse draft are zero, by parameter."""
    if "zeros" not in draft.notes:
        return {}
    masks = {
        f"{name}.weight": module.weight == 0
        for name, module in draft.architecture.linear_layers(draft.model).items()
    }
    return {name: mask for name, mask in masks.items() if isinstance(mask, Tensor) and bool(mask.any())}
