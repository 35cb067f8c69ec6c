"""Thin factors for linear layers and heads.

Plain: the truncated singular value decomposition, the best approximation of the weights. Activation-aware:
of W S instead, with S Sᵀ = X Xᵀ of the layer's inputs, the best approximation of its outputs on the
calibration text (SVD-LLM, Wang et al. 2024, arXiv:2403.07378).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from draftrank.building.surgery.importance import BATCH_SEQUENCES
from draftrank.building.surgery.layer_walk import walk_layers
from draftrank.errors import BuildError
from draftrank.models.forms import (
    LowRankForm,
    LowRankLinear,
    TrimmedHead,
    TrimmedHeadForm,
    weights_read_directly,
)
from draftrank.models.matrices import matrix
from draftrank.models.resizing import replace_module

if TYPE_CHECKING:
    from draftrank.building.working_draft import WorkingDraft
    from draftrank.progress import Progress

Matrices = Literal["all", "attention", "feed_forward"]
_DAMPING = 1e-4
"""Share of the mean diagonal that is added to X Xᵀ, so that it has a Cholesky factor."""


def factorize_layers(
    draft: WorkingDraft, keep_parameters: float, which: Matrices, tokens: Tensor | None, progress: Progress
) -> None:
    """Factorizes matrices of every decoder layer, in place, to a share of their parameters; not those whose weights the
    model's code reads by itself. `tokens`: calibration text, int [sequences, length]; None: only the weights are
    approximated."""
    blocks = draft.architecture.blocks
    parts = [
        {
            "all": (*block.attention_parts(), *block.feed_forward_parts()),
            "attention": block.attention_parts(),
            "feed_forward": block.feed_forward_parts(),
        }[which]
        for block in blocks
    ]

    read = weights_read_directly(draft.model)

    def factorize(layer: nn.Module, index: int, name: str, moments: dict[str, Tensor]) -> None:
        for part in parts[index]:
            module = layer.get_submodule(part)
            if module in read:
                continue
            outputs, inputs = matrix(module).shape
            rank = saving_rank(outputs, inputs, keep_parameters)
            replace_module(layer, part, factorized(module, rank, moments.get(part)))
            draft.forms.append(LowRankForm(module=f"{name}.{part}", rank=rank))

    layers = draft.architecture.layers(draft.model)
    with progress.stage("factorize", len(layers)) as stage:
        if tokens is None:
            for index, layer in enumerate(layers):
                factorize(layer, index, draft.architecture.layer_name(index), {})
                stage.advance()
            return
        for visited in walk_layers(draft, tokens):
            factorize(
                visited.layer, visited.index, visited.name, visited.second_moments(parts[visited.index])
            )
            stage.advance()


def factorize_head(draft: WorkingDraft, rank: int, tokens: Tensor | None) -> None:
    """Factorizes the head, trimmed or not, in place; arguments as above."""
    shape, model = draft.architecture, draft.model
    head = shape.head(model)
    moment = None if tokens is None else _head_moment(draft, tokens)
    if isinstance(head, TrimmedHead):
        head.projection = factorized(head.projection, rank, moment)
        place = next(i for i, form in enumerate(draft.forms) if isinstance(form, TrimmedHeadForm))
        draft.forms[place] = draft.forms[place].model_copy(update={"rank": rank})
        return
    replace_module(model, shape.names.output_head, factorized(head, rank, moment))
    draft.forms.append(LowRankForm(module=shape.names.output_head, rank=rank))


@torch.inference_mode()
def _head_moment(draft: WorkingDraft, tokens: Tensor) -> Tensor:
    """Sum over positions of h hᵀ of the final hidden states, float32 [hidden, hidden]."""
    total: Tensor | None = None
    for batch in torch.split(tokens, BATCH_SEQUENCES):
        ids = batch.to(draft.model.device, torch.int64)
        states = draft.architecture.hidden_states(draft.model, ids).flatten(0, 1).float()
        moment = states.t() @ states
        total = moment if total is None else total + moment
    assert total is not None
    return total


def saving_rank(outputs: int, inputs: int, share: float) -> int:
    """The rank at which two factors hold a share of the matrix's parameters; at least 1."""
    return max(1, int(share * outputs * inputs / (outputs + inputs)))


def require_rank(module: nn.Module, rank: int) -> None:
    """Refuses a rank that a linear layer cannot have.

    Raises:
        BuildError: it exceeds that of the matrix.
    """
    outputs, inputs = matrix(module).shape
    if rank > min(outputs, inputs):
        raise BuildError(
            f"a matrix of {outputs} by {inputs} has no rank {rank}: write at most {min(outputs, inputs)}"
        )


@torch.no_grad()
def factorized(module: nn.Module, rank: int, moment: Tensor | None = None) -> LowRankLinear:
    """A linear layer of a rank, closest to the given one.

    Args:
        module: a linear layer or GPT-2's Conv1D.
        rank: width between the factors; the full rank changes nothing but rounding.
        moment: X Xᵀ of its inputs, float [inputs, inputs], for the activation-aware form.

    Raises:
        BuildError: the rank exceeds that of the matrix.
    """
    require_rank(module, rank)
    weight = matrix(module).double()
    outputs, inputs = weight.shape
    scale = None
    if moment is not None:
        damped = moment.double()
        mean = damped.diagonal().mean().clamp(min=1e-12)
        scale = torch.linalg.cholesky(damped + _DAMPING * mean * torch.eye(inputs, device=damped.device))
    left, values, right = torch.linalg.svd(weight if scale is None else weight @ scale, full_matrices=False)
    first = right[:rank]
    if scale is not None:
        first = torch.linalg.solve_triangular(scale, first, upper=False, left=False)
    roots = values[:rank].sqrt()
    bias = module.bias
    thin = LowRankLinear(inputs, rank, outputs, bias=isinstance(bias, Tensor))
    thin.first.weight.copy_(roots[:, None] * first)
    thin.second.weight.copy_(left[:, :rank] * roots)
    if isinstance(bias, Tensor):
        thin.second.bias.copy_(bias)
    own = module.weight
    assert isinstance(own, Tensor)
    return thin.to(own.device, own.dtype).eval().requires_grad_(False)
