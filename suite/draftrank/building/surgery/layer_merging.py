"""Several consecutive layers become one.

LaCo (Yang et al. 2024, arXiv:2402.11187) adds the differences of the following layers to the first one:
merged = first + sum(other - first). It walks down from the top and takes each merge that keeps the output
similar enough. Here the depth is declared instead of the threshold: in each round the merge is taken whose
model's final hidden states stay most similar to the target's.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from draftrank.building.surgery.layer_scores import final_similarity, final_states
from draftrank.errors import BuildError

if TYPE_CHECKING:
    from draftrank.building.working_draft import WorkingDraft
    from draftrank.progress import Progress

MERGING_SEQUENCES = 8
"""Each candidate runs the whole model, so the first sequences of the calibration text must do."""


def merge_layers(
    draft: WorkingDraft, keep: int, group: int, tokens: Tensor, progress: Progress
) -> list[list[int]]:
    """Merges layers, up to `group` at a time, until `keep` are left, in place; `tokens`: calibration text, int [sequences,
    length].

    Returns:
        for each layer that is left, the original layers in it.

    Raises:
        BuildError: the model has not that many layers.
    """
    shape, model = draft.architecture, draft.model
    layers: list[nn.Module] = list(shape.layers(model))
    require_layers(keep, len(layers))
    members = [[index] for index in range(len(layers))]
    expected = final_states(shape, model, tokens)
    with progress.stage("merge layers", len(layers) - keep) as stage:
        while len(layers) > keep:
            size = min(group, len(layers) - keep + 1)
            found = -2.0
            best: tuple[int, nn.Module] | None = None
            for first in range(len(layers) - size + 1):
                merged = merged_layer(layers[first : first + size])
                trial = [*layers[:first], merged, *layers[first + size :]]
                places = [places[0] for places in _joined(members, first, size)]
                view = shape.view_of(model, trial, places)
                similarity = final_similarity(shape, view, expected, tokens)
                if best is None or similarity > found:
                    found, best = similarity, (first, merged)
            assert best is not None
            first, merged = best
            layers = [*layers[:first], merged, *layers[first + size :]]
            members = _joined(members, first, size)
            stage.advance(size - 1, f"{len(layers)} layers, similarity {found:.3f}")
    shape.replace_layers(model, layers, [places[0] for places in members])
    return members


def require_layers(keep: int, depth: int) -> None:
    """Refuses to leave more layers than there are.

    Raises:
        BuildError: there are fewer.
    """
    if keep > depth:
        raise BuildError(
            f"the model has {depth} layers, so {keep} cannot be left: write at most {depth} in keep"
        )


@torch.no_grad()
def merged_layer(layers: Sequence[nn.Module]) -> nn.Module:
    """The first layer plus how the others differ from it."""
    merged = copy.deepcopy(layers[0])
    others = [dict(layer.named_parameters()) for layer in layers[1:]]
    for name, parameter in merged.named_parameters():
        first = parameter.clone()
        for other in others:
            parameter.add_(other[name] - first)
    return merged


def _joined(members: list[list[int]], first: int, size: int) -> list[list[int]]:
    together = [index for places in members[first : first + size] for index in places]
    return [*members[:first], together, *members[first + size :]]
