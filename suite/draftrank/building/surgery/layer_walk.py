"""Visits a model's layers one after another on calibration text. Each reads what the earlier ones became.

Methods that change a layer by the inputs it sees (Wanda, SparseGPT, activation-aware factorization) must
see what the changed layers before it give, and a large model leaves no room for the activations of more
than one layer: so hidden states are carried from layer to layer, and nothing else is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from draftrank.building.surgery.importance import BATCH_SEQUENCES, watched_inputs

if TYPE_CHECKING:
    from draftrank.building.working_draft import WorkingDraft


class VisitedLayer:
    """One layer, its place and the inputs that its matrices see."""

    def __init__(self, index: int, name: str, layer: nn.Module, batches: list[_Batch]) -> None:
        self.index = index
        self.name = name
        """The layer's name in the model."""
        self.layer = layer
        self._batches = batches

    @torch.inference_mode()
    def second_moments(self, parts: tuple[str, ...]) -> dict[str, Tensor]:
        """For each named matrix: the sum over positions of x xᵀ, float32 [inputs, inputs]."""
        found: dict[str, Tensor] = {}
        seen: dict[int, str] = {}
        alive: list[Tensor] = []  # an id is only a name while its tensor lives
        same: dict[str, str] = {}

        def add(part: str, x: Tensor) -> None:
            flat = x.flatten(0, -2).float()
            first = seen.setdefault(id(x), part)  # queries, keys and values read one tensor
            same[part] = first
            alive.append(x)
            if first == part:
                moment = flat.t() @ flat
                found[part] = found[part] + moment if part in found else moment

        with watched_inputs({part: self.layer.get_submodule(part) for part in parts}, add):
            for batch in self._batches:
                seen.clear()
                alive.clear()
                batch.run(self.index, self.layer)
        return {part: found[same[part]] for part in parts}


class _Batch:
    """Hidden states of some sequences, and what the model passes to each layer beside them."""

    def __init__(self) -> None:
        self.hidden: Tensor
        self.positional: list[tuple[Any, ...]] = []
        self.named: list[dict[str, Any]] = []

    def run(self, index: int, layer: nn.Module) -> Tensor:
        """What the layer makes of the hidden states."""
        output = layer(self.hidden, *self.positional[index], **self.named[index])
        hidden: Tensor = output if isinstance(output, Tensor) else output[0]
        return hidden


@torch.inference_mode()
def walk_layers(draft: WorkingDraft, token_ids: Tensor) -> Iterator[VisitedLayer]:
    """Yields each decoder layer in order, on calibration text, int [sequences, length]; what is done to it is seen by those
    after it."""
    shape, model = draft.architecture, draft.model
    batches = [_recorded(draft, ids) for ids in torch.split(token_ids, BATCH_SEQUENCES)]
    for index, layer in enumerate(shape.layers(model)):
        yield VisitedLayer(index, shape.layer_name(index), layer, batches)
        for batch in batches:
            batch.hidden = batch.run(index, layer)


def _recorded(draft: WorkingDraft, token_ids: Tensor) -> _Batch:
    batch = _Batch()

    def record(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not batch.named:
            batch.hidden = arguments[0]
        batch.positional.append(arguments[1:])
        batch.named.append(named)

    with ExitStack() as hooks:
        for layer in draft.architecture.layers(draft.model):
            hooks.enter_context(layer.register_forward_pre_hook(record, with_kwargs=True))
        draft.architecture.hidden_states(draft.model, token_ids.to(draft.model.device, torch.int64))
    return batch
