"""Which layers a shallower draft keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from draftrank.building.surgery.layer_scores import angular_distances, block_influence, layers_by_loss
from draftrank.building.text.corpus import calibration_tokens
from draftrank.errors import BuildError

if TYPE_CHECKING:
    from draftrank.building.working_draft import BuildContext, WorkingDraft

Selection = Literal["ends", "even", "first", "block_influence", "angular", "loss"]
LOSS_SEQUENCES = 8
"""`loss` runs the model once per candidate, so it looks at the first sequences of the text only."""


def named_layers(keep: int | Sequence[int], select: Selection | None, depth: int) -> tuple[int, ...] | None:
    """Indices of the layers that stay of `depth`, ascending, where nothing has to be measured to tell them; else None. For
    `keep` and `select` see `DropLayers`.

    Raises:
        BuildError: the model has fewer layers than that.
    """
    wanted = keep if isinstance(keep, int) else max(keep) + 1
    if wanted > depth:
        raise BuildError(
            f"the model has {depth} layers, so {wanted} of them cannot be kept: write at most {depth}"
            if isinstance(keep, int)
            else f"the model has layers 0 to {depth - 1}: there is no layer {wanted - 1}"
        )
    if not isinstance(keep, int):
        return tuple(keep)
    if select == "ends":
        first = (keep + 1) // 2
        return (*range(first), *range(depth - (keep - first), depth))
    if select == "even":
        return evenly_spaced(keep, depth)
    return tuple(range(keep)) if select == "first" or keep == depth else None


def choose_layers(
    keep: int | Sequence[int], select: Selection | None, draft: WorkingDraft, context: BuildContext
) -> tuple[int, ...]:
    """Indices of the layers that stay, ascending; what decided is noted in the draft's notes. For `keep` and `select` see
    `DropLayers`.

    Raises:
        BuildError: the model has fewer layers than that.
    """
    depth = len(draft.architecture.layers(draft.model))
    named = named_layers(keep, select, depth)
    if named is not None:
        return named
    assert isinstance(keep, int)
    tokens = calibration_tokens(context)
    with context.progress.stage("score the layers"):
        if select == "angular":
            distances = angular_distances(draft, tokens, depth - keep)
            draft.notes["angular_distances"] = _rounded(distances)
            start = distances.index(min(distances))
            return (*range(start), *range(start + depth - keep, depth))
        if select == "loss":
            kept, losses = layers_by_loss(draft, tokens[:LOSS_SEQUENCES], keep)
            draft.notes["losses"] = _rounded(losses)
            return tuple(kept)
        influence = block_influence(draft, tokens)
    draft.notes["block_influence"] = _rounded(influence)
    ranked = sorted(range(depth), key=lambda index: (-influence[index], index))
    return tuple(sorted(ranked[:keep]))


def evenly_spaced(count: int, depth: int) -> tuple[int, ...]:
    """`count` different indices below `depth` at equal distances, the first and the last included."""
    if count == 1:
        return (0,)
    gaps = count - 1
    return tuple((2 * index * (depth - 1) + gaps) // (2 * gaps) for index in range(count))


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 6) for value in values]
