"""Sets weights to zero by how little they matter.

- `magnitude`: the smallest weights of each matrix's row.
- `wanda`: the smallest |weight| · norm of its input, row by row (Sun et al. 2023, arXiv:2306.11695).
- `sparsegpt`: as above by w² / [H⁻¹]² with the Hessian H = X Xᵀ, and the weights that stay make up for those
  that go, column by column (Frantar and Alistarh 2023, arXiv:2301.00774).

The matrices of the decoder layers are made sparse; embedding and head are not, as in the papers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from draftrank.building.surgery.layer_walk import walk_layers
from draftrank.errors import BuildError
from draftrank.models.matrices import matrix

if TYPE_CHECKING:
    from draftrank.building.working_draft import WorkingDraft
    from draftrank.progress import Progress

Method = Literal["magnitude", "wanda", "sparsegpt"]
Pattern = tuple[int, int] | None

BLOCK = 128
"""Columns after which SparseGPT's errors are passed on to all later ones (the paper's size)."""
DAMPING = 0.01
"""Share of the Hessian's mean diagonal that is added to it, as in the paper's code."""


def sparsify(
    draft: WorkingDraft,
    method: Method,
    sparsity: float,
    pattern: Pattern,
    tokens: Tensor | None,
    progress: Progress,
) -> float:
    """Sets weights of the decoder layers to zero, in place; returns the share of zeros in them.

    Args:
        draft: the model.
        method: which weights go.
        sparsity: share that goes.
        pattern: instead, (n, m): of every m weights of a row n stay.
        tokens: calibration text, int [sequences, length]; None for `magnitude`.
        progress: told how far it is.

    Raises:
        BuildError: a matrix has a number of columns that the pattern does not divide.
    """
    matrices = draft.architecture.linear_layers(draft.model)
    require_columns(draft, pattern)
    if method == "magnitude":
        for module in matrices.values():
            weight = matrix(module)
            weight.masked_fill_(lowest_mask(weight.abs(), sparsity, pattern), 0.0)
    else:
        assert tokens is not None
        _by_inputs(draft, method, sparsity, pattern, tokens, progress)
    zeros = sum(int((matrix(module) == 0).sum()) for module in matrices.values())
    return zeros / sum(matrix(module).numel() for module in matrices.values())


def require_columns(draft: WorkingDraft, pattern: Pattern) -> None:
    """Refuses a pattern that does not divide the rows of the decoder layers' matrices.

    Raises:
        BuildError: it does not.
    """
    for name, module in draft.architecture.linear_layers(draft.model).items():
        columns = matrix(module).shape[1]
        if pattern is not None and columns % pattern[1]:
            raise BuildError(
                f"{name} has {columns} columns, which is no multiple of {pattern[1]}: use another pattern"
            )


def _by_inputs(
    draft: WorkingDraft,
    method: Method,
    sparsity: float,
    pattern: Pattern,
    tokens: Tensor,
    progress: Progress,
) -> None:
    blocks = draft.architecture.blocks
    with progress.stage("sparsify", len(blocks)) as stage:
        for visited in walk_layers(draft, tokens):
            block = blocks[visited.index]
            parts = (*block.attention_parts(), *block.feed_forward_parts())
            for part, moment in visited.second_moments(parts).items():
                _thin_out(visited.layer.get_submodule(part), moment, method, sparsity, pattern)
            stage.advance()


@torch.no_grad()
def _thin_out(module: nn.Module, moment: Tensor, method: Method, sparsity: float, pattern: Pattern) -> None:
    weight = matrix(module)
    if method == "wanda":
        weight.masked_fill_(lowest_mask(wanda_scores(weight, moment), sparsity, pattern), 0.0)
    else:
        weight.copy_(sparsegpt(weight, moment, sparsity, pattern))


def lowest_mask(scores: Tensor, sparsity: float, pattern: Pattern) -> Tensor:
    """True where a weight goes: the lowest scores of each row, or of each group of a pattern.

    Args:
        scores: float [rows, columns].
        sparsity: share that goes, rounded down per row; of no effect with a pattern.
        pattern: (n, m): of every m consecutive columns n stay; the columns must be a multiple of m.
    """
    if pattern is not None:
        stay, group = pattern
        grouped = scores.view(len(scores), -1, group)
        order = torch.sort(grouped, dim=-1, stable=True).indices[..., : group - stay]
        return torch.zeros_like(grouped, dtype=torch.bool).scatter_(-1, order, value=True).flatten(1)
    order = torch.sort(scores, dim=1, stable=True).indices[:, : int(scores.shape[1] * sparsity)]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, value=True)


def wanda_scores(weight: Tensor, moment: Tensor) -> Tensor:
    """|W| times the norm of each input; weight [outputs, inputs], moment X Xᵀ [inputs, inputs]."""
    return weight.abs() * moment.diagonal().clamp(min=0).sqrt()


def sparsegpt(weight: Tensor, moment: Tensor, sparsity: float, pattern: Pattern) -> Tensor:
    """The weights, float32 [outputs, inputs], with zeros in them, the others adjusted, in a copy. `moment`: X Xᵀ of the
    inputs, float32 [inputs, inputs]; for the rest see `lowest_mask`."""
    weight = weight.clone()
    inverse = inverse_hessian_factor(moment, weight)
    columns = weight.shape[1]
    size = BLOCK if pattern is None else max(pattern[1], BLOCK // pattern[1] * pattern[1])
    for first in range(0, columns, size):
        last = min(first + size, columns)
        block, factor = weight[:, first:last], inverse[first:last, first:last]
        diagonal = factor.diagonal()
        goes = _block_mask(block.square() / diagonal.square(), sparsity, pattern)
        errors = torch.zeros_like(block)
        for column in range(last - first):
            kept = block[:, column].masked_fill(goes[:, column], 0.0)
            error = (block[:, column] - kept) / diagonal[column]
            block[:, column] = kept
            block[:, column + 1 :] -= error[:, None] * factor[column, column + 1 :]
            errors[:, column] = error
        weight[:, last:] -= errors @ inverse[first:last, last:]
    return weight


def inverse_hessian_factor(moment: Tensor, weight: Tensor) -> Tensor:
    """Upper Cholesky factor of the damped Hessian's inverse, float32 [inputs, inputs].

    Inputs that never occur get no say: their weights are set to zero, in place.
    """
    hessian = moment.clone()
    silent = hessian.diagonal() == 0
    hessian.diagonal()[silent] = 1.0
    weight[:, silent] = 0.0
    hessian.diagonal().add_(DAMPING * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def _block_mask(scores: Tensor, sparsity: float, pattern: Pattern) -> Tensor:
    """Without a pattern the paper judges all rows of a block together."""
    if pattern is not None:
        return lowest_mask(scores, sparsity, pattern)
    goes = int(scores.numel() * sparsity)
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[torch.sort(scores.flatten(), stable=True).indices[:goes]] = True
    return mask.view_as(scores)
