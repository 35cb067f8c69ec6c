"""From logits to probabilities and tokens, alike for target and draft."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from draftrank.catalog.decoding_mode import DecodingMode

if TYPE_CHECKING:
    from torch import Tensor

    from draftrank.engine.backends.base import Runtime


_MAX_LOOKED_AT = 1024
"""Most likely tokens that are looked at first."""


def most_likely(logits: Tensor) -> list[int]:
    """The most likely token of each row of logits, [rows, vocabulary]; of equally likely ones the first.

    On a CPU torch's own argmax of bf16 is slow: of seven rows of 49,152 it takes 0.63 ms, numpy's of the same in fp32
    0.11 ms, conversion included (medians, two quiet cores).
    """
    if logits.device.type == "cpu":
        chosen = logits.detach().float().numpy().argmax(-1)
    else:
        chosen = logits.argmax(-1)
    found: list[int] = chosen.tolist()
    return found


def most_likely_after(by: Runtime | None, logits: Tensor) -> list[int]:
    """The same of logits that a runtime has just given, which may have chosen already."""
    if by is None or not by.capabilities.choices:
        return most_likely(logits)
    return by.choices(len(logits))


def distribution(logits: Tensor, mode: DecodingMode) -> Tensor:
    """Distribution over the vocabulary for each row: temperature, then top-k, then top-p.

    Of tokens that are as likely as the last one that is kept, all are. Waits for no GPU, so that a recorded graph
    may hold it.

    Args:
        logits: [rows, vocabulary], any float dtype.
        mode: a sampling mode; greedy ones have no distribution, use the argmax.

    Returns:
        float32 [rows, vocabulary] where the logits are; rows sum to 1.
    """
    scores = logits.float() / mode.temperature
    if mode.top_k is not None and mode.top_k < scores.shape[-1]:
        threshold = torch.topk(scores, mode.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < threshold, -torch.inf)
    probabilities = torch.softmax(scores, dim=-1)
    if mode.top_p is not None and mode.top_p < 1.0:
        probabilities = probabilities.masked_fill(
            probabilities < _nucleus_edge(probabilities, mode.top_p), 0.0
        )
        probabilities /= probabilities.sum(dim=-1, keepdim=True)
    return probabilities


def _nucleus_edge(probabilities: Tensor, top_p: float) -> Tensor:
    """The least probability in the smallest set of most likely tokens that holds `top_p`, [rows, 1].

    Sorting 16 rows of 49,152 takes two processors 36 ms, finding the first thousand of each 2 ms. These hold most nuclei,
    but to know so is to wait, so on a GPU everything is sorted.
    """
    if probabilities.device.type != "cpu" or probabilities.shape[-1] <= _MAX_LOOKED_AT:
        return _edge(probabilities.sort(dim=-1, descending=True).values, top_p)
    ordered = probabilities.topk(_MAX_LOOKED_AT, dim=-1).values
    edge = _edge(ordered, top_p)
    wide = ordered.sum(-1) < top_p
    if wide.any():
        edge[wide] = _edge(probabilities[wide].sort(dim=-1, descending=True).values, top_p)
    return edge


def _edge(ordered: Tensor, top_p: float) -> Tensor:
    """See `_nucleus_edge`; of the most likely tokens, the first first."""
    before = ordered.cumsum(dim=-1) - ordered
    return ordered.masked_fill(before >= top_p, torch.inf).min(-1, keepdim=True).values


def pick(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The token of each row at which the sum of probabilities first exceeds a uniform number's share of the whole.

    A token of probability 0 is never picked. Waits for no device.

    Args:
        probabilities: [rows, vocabulary]; their scale does not matter, and none is negative.
        uniforms: [rows], float32 in [0, 1).

    Returns:
        int64 [rows].
    """
    sums = probabilities.cumsum(-1, dtype=torch.float64)
    found = torch.searchsorted(sums, uniforms[:, None] * sums[:, -1:], right=True)[:, 0]
    return found.clamp_(max=probabilities.shape[-1] - 1)


class Sampler:
    """Applies one decoding mode and owns the random numbers of one sequence."""

    trees: ClassVar[bool] = True
    """Whether a draft that branches may propose trees of its most probable tokens."""

    def __init__(self, mode: DecodingMode, seed: int | None = None) -> None:
        self.mode = mode
        self._generator = torch.Generator(device="cpu")
        self._generator.manual_seed(mode.seed if seed is None else seed)

    def probabilities(self, logits: Tensor) -> Tensor:
        """See `distribution`."""
        return distribution(logits, self.mode)

    def confidence(self, logits: Tensor) -> float:
        """Probability of the most likely token of one row of logits, [1, vocabulary], at temperature 1."""
        return float(torch.softmax(logits[-1].to(dtype=torch.float32), dim=-1).max())

    def draw(self, probabilities: Tensor) -> int:
        """One token id from one distribution, [vocabulary]; its scale does not matter."""
        return int(pick(probabilities[None], self.uniforms(1).to(probabilities.device)))

    def uniforms(self, count: int) -> Tensor:
        """So many random numbers in [0, 1), float32 on the CPU."""
        return torch.rand(count, generator=self._generator)

    def choose(self, logits: Tensor, by: Runtime | None = None) -> int:
        """One token id from one row of logits, [1, vocabulary], which the runtime `by` has just given."""
        if self.mode.greedy:
            return most_likely_after(by, logits[-1:])[0]
        return self.draw(self.probabilities(logits[-1:])[0])
