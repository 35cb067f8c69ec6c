"""How much each layer of a model does, by measures that need text.

Hidden states are compared at all positions of the calibration text; the papers of both similarity
measures take the last position of many texts, which says the same of longer corpora.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from draftrank.building.surgery.importance import BATCH_SEQUENCES, watched_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from draftrank.building.working_draft import WorkingDraft
    from draftrank.models.architecture import Architecture

_LOSS_POSITIONS = 512
"""Positions whose logits are held together: 100 MB of them for 49k tokens in fp32."""


def block_influence(draft: WorkingDraft, token_ids: Tensor) -> list[float]:
    """ShortGPT's score of each layer: one minus the mean cosine similarity between the hidden state before and after it,
    over all positions of a text, int [sequences, length] (Men et al. 2024, arXiv:2403.03853)."""
    depth = len(draft.architecture.layers(draft.model))
    totals = [0.0] * depth
    for states in _hidden_states(draft, token_ids):
        for index in range(depth):
            totals[index] += float(_cosine(states[index], states[index + 1]).sum())
    return [1.0 - total / token_ids.numel() for total in totals]


def angular_distances(draft: WorkingDraft, token_ids: Tensor, dropped: int) -> list[float]:
    """How far each block of `dropped` consecutive layers turns the hidden state: arccos(cosine
    similarity of its input and output) / pi, mean over positions (Gromov et al. 2024, arXiv:2403.17887).

    Returns:
        one distance in [0, 1] for each layer that such a block can begin with.
    """
    starts = len(draft.architecture.layers(draft.model)) - dropped + 1
    totals = [0.0] * starts
    for states in _hidden_states(draft, token_ids):
        for start in range(starts):
            similarity = _cosine(states[start], states[start + dropped]).clamp(-1.0, 1.0)
            totals[start] += float(similarity.arccos().sum()) / math.pi
    return [total / token_ids.numel() for total in totals]


@torch.inference_mode()
def text_loss(shape: Architecture, model: PreTrainedModel, token_ids: Tensor) -> float:
    """Mean cross-entropy of the text's next tokens, in nats; `token_ids` int [sequences, length]."""
    total, count = 0.0, 0
    for batch in torch.split(token_ids, BATCH_SEQUENCES):
        ids = batch.to(model.device, torch.int64)
        hidden = shape.hidden_states(model, ids)[:, :-1].flatten(0, 1)
        following = ids[:, 1:].flatten()
        for states, tokens in zip(
            torch.split(hidden, _LOSS_POSITIONS), torch.split(following, _LOSS_POSITIONS), strict=True
        ):
            logits = shape.logits(model, states).float()
            total += float(nn.functional.cross_entropy(logits, tokens, reduction="sum"))
            count += len(tokens)
    return total / count


def layers_by_loss(draft: WorkingDraft, token_ids: Tensor, keep: int) -> tuple[list[int], list[float]]:
    """Drops one layer after another, each time the one without which the text's loss is lowest.

    Returns:
        the layers that stay, ascending, and the loss after each drop.
    """
    shape, model = draft.architecture, draft.model
    layers = shape.layers(model)
    kept, losses = list(range(len(layers))), []
    while len(kept) > keep:
        trials = []
        for position in range(len(kept)):
            rest = [*kept[:position], *kept[position + 1 :]]
            view = shape.view_of(model, [layers[index] for index in rest], rest)
            trials.append((text_loss(shape, view, token_ids), rest))
        loss, kept = min(trials, key=lambda trial: trial[0])
        losses.append(loss)
    return kept, losses


@torch.inference_mode()
def final_similarity(
    shape: Architecture, model: PreTrainedModel, expected: Sequence[Tensor], token_ids: Tensor
) -> float:
    """Mean cosine similarity of a model's final hidden states with expected ones, one tensor a batch."""
    total = 0.0
    for batch, wanted in zip(torch.split(token_ids, BATCH_SEQUENCES), expected, strict=True):
        hidden = shape.hidden_states(model, batch.to(model.device, torch.int64))
        total += float(_cosine(hidden, wanted).sum())
    return total / token_ids.numel()


@torch.inference_mode()
def final_states(shape: Architecture, model: PreTrainedModel, token_ids: Tensor) -> list[Tensor]:
    """A model's final hidden states, one tensor [sequences, length, hidden] a batch."""
    return [
        shape.hidden_states(model, batch.to(model.device, torch.int64))
        for batch in torch.split(token_ids, BATCH_SEQUENCES)
    ]


@torch.inference_mode()
def _hidden_states(draft: WorkingDraft, token_ids: Tensor) -> Iterator[list[Tensor]]:
    """For each batch: the input of every layer, then the input of the final norm, all fp32."""
    shape, model = draft.architecture, draft.model
    modules = dict(enumerate((*shape.layers(model), shape.norm(model))))
    for batch in torch.split(token_ids, BATCH_SEQUENCES):
        found: list[Tensor] = []
        with watched_inputs(modules, lambda _, hidden, found=found: found.append(hidden.float())):  # type: ignore[misc]
            shape.hidden_states(model, batch.to(model.device, torch.int64))
        yield found


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    return torch.cosine_similarity(first.float(), second.float(), dim=-1).double()
