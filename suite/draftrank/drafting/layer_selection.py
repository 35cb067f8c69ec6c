"""Which layers a shallower draft keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from draftrank.drafting.corpus import self_generated_corpus
from draftrank.drafting.steps.distill import SelfGenerated
from draftrank.errors import BuildError

if TYPE_CHECKING:
    from draftrank.drafting.working_draft import BuildContext, WorkingDraft

Selection = Literal["ends", "even", "first", "block_influence"]

CALIBRATION = SelfGenerated(
    kind="self_generated", tokens=4_096, sequence_tokens=128, batch_sequences=32, seed=0
)
"""The text that block influence is measured on."""
_BATCH_SEQUENCES = 8


def choose_layers(
    keep: int | Sequence[int], select: Selection | None, draft: WorkingDraft, context: BuildContext
) -> tuple[int, ...]:
    """Indices of the layers that stay, ascending.

    Args:
        keep: how many, or which.
        select: with a number: how they are chosen (see `DropLayers.select`).
        draft: the model to cut; block influence is noted in its notes.
        context: what surrounds the build.

    Raises:
        BuildError: the model has fewer layers than that.
    """
    depth = len(draft.architecture.layers(draft.model))
    wanted = keep if isinstance(keep, int) else max(keep) + 1
    if wanted > depth:
        raise BuildError(
            f"the model has {depth} layers, so {wanted} of them cannot be kept: write at most {depth}"
            if isinstance(keep, int)
            else f"the model has layers 0 to {depth - 1}: there is no layer {wanted - 1}"
        )
    if not isinstance(keep, int):
        return tuple(keep)
    if select == "block_influence":
        influence = _influence_on_calibration(draft, context)
        draft.notes["block_influence"] = [round(value, 6) for value in influence]
        ranked = sorted(range(depth), key=lambda index: (-influence[index], index))
        return tuple(sorted(ranked[:keep]))
    if select == "ends":
        first = (keep + 1) // 2
        return (*range(first), *range(depth - (keep - first), depth))
    if select == "even":
        return evenly_spaced(keep, depth)
    return tuple(range(keep))


def evenly_spaced(count: int, depth: int) -> tuple[int, ...]:
    """`count` different indices below `depth` at equal distances, the first and the last included."""
    if count == 1:
        return (0,)
    gaps = count - 1
    return tuple((2 * index * (depth - 1) + gaps) // (2 * gaps) for index in range(count))


def block_influence(draft: WorkingDraft, token_ids: Tensor) -> list[float]:
    """ShortGPT's score of each layer: one minus the mean cosine similarity between the hidden state
    before and after it, over all positions (Men et al. 2024, arXiv:2403.03853).

    Args:
        draft: the model to judge.
        token_ids: int tensor [sequences, length].
    """
    layers = draft.architecture.layers(draft.model)
    totals = torch.zeros(len(layers), dtype=torch.float64)

    def observer(index: int) -> Callable[[nn.Module, tuple[Tensor, ...], Any], None]:
        def observe(_: nn.Module, arguments: tuple[Tensor, ...], output: Any) -> None:
            after = output if isinstance(output, Tensor) else output[0]
            similarity = torch.cosine_similarity(arguments[0].float(), after.float(), dim=-1)
            totals[index] += similarity.double().sum().cpu()

        return observe

    handles = [layer.register_forward_hook(observer(index)) for index, layer in enumerate(layers)]
    try:
        with torch.inference_mode():
            for batch in torch.split(token_ids, _BATCH_SEQUENCES):
                draft.architecture.hidden_states(draft.model, batch.to(draft.model.device, torch.int64))
    finally:
        for handle in handles:
            handle.remove()
    return [1.0 - float(total) / token_ids.numel() for total in totals]


def _influence_on_calibration(draft: WorkingDraft, context: BuildContext) -> list[float]:
    corpus = self_generated_corpus(CALIBRATION, context)
    with context.progress.stage("score the layers' influence"):
        return block_influence(draft, corpus.tokens)
