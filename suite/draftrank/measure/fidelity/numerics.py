"""How far rounding moves the target's logits when several tokens share a forward.

In bf16 and fp16, a matrix product of one row sums and rounds in another order than one of several rows.
llama.cpp also rounds activations to the blocks of quantized weights. So a correct speculative loop may choose
another token where the target's two best are almost equal. The session measures how nearly equal on its own
outputs: it runs the same tokens one at a time and in chunks, each with its own KV cache, as decoding does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from draftrank.measure.evidence import Numerics
from draftrank.measure.records import Session

if TYPE_CHECKING:
    from torch import Tensor

    from draftrank.engine.backends.base import Runtime
    from draftrank.progress import Stage

MIN_TOKENS = 500
"""Minimum of output tokens on which rounding is measured, where the session has as many. In bf16 the largest
change hardly grows beyond (see `docs/methodology.md`). Over two short outputs it is often half as large as
over others, so that honest drafts would be called broken."""
MIN_EXACT = 150
"""Output tokens without any change after which a backend counts as one that does not round by the size of a forward, so
that the other texts are not read."""
DECIMALS = 6


def needs_numerics(session: Session) -> bool:
    """Whether outputs of this session may differ by rounding alone: fp32 must give identical ones."""
    drafts = any(arm.num_speculative_tokens for arm in session.arms)
    return session.dtype != "fp32" and session.mode.greedy and drafts


def measure_numerics(
    target: Runtime,
    texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    forward_tokens: Sequence[int],
    stage: Stage,
) -> Numerics:
    """Compares the logits after every output token between forwards of one token and of several, each of at least two.

    `texts` are prompts with the target's outputs, as token ids; see `MIN_EXACT`. The target's sequence is lost.
    """
    changes: list[float] = []
    alone: list[float] = []
    for prompt, output in texts:
        if len(output) > 1:
            _read(target, prompt, output, max(forward_tokens, default=1))
            best, gaps = _gaps(target, output[:-1], 1, None)
            alone += gaps
            for size in forward_tokens:
                target.rollback(len(output) - 1)
                _, moved = _gaps(target, output[:-1], size, best)
                changes += [abs(one - other) for one, other in zip(gaps, moved, strict=True)]
        stage.advance()
        if len(alone) >= MIN_EXACT and not any(changes):
            break
    return Numerics(
        positions=len(changes),
        forward_tokens=tuple(forward_tokens),
        quantiles=_percentiles(changes),
        gap_quantiles=_percentiles(alone),
    )


def largest_deviation(
    target: Runtime, reference: Runtime, texts: Sequence[tuple[Sequence[int], Sequence[int]]], stage: Stage
) -> float:
    """How far the gap between the target's two best tokens lies from another runtime's of the same model, at most.

    `texts` are prompts with the target's outputs, as token ids. The target decodes them one token at a time, and the
    reference reads each in one forward; the sequences of both are lost.
    """
    largest = 0.0
    for prompt, output in texts:
        if len(output) > 1:
            for runtime in (target, reference):
                _read(runtime, prompt, output, len(output))
            best, gaps = _gaps(target, output[:-1], 1, None)
            _, others = _gaps(reference, output[:-1], len(output), best)
            largest = max(largest, *(abs(one - other) for one, other in zip(gaps, others, strict=True)))
        stage.advance()
    return largest


Top = Sequence[Sequence[tuple[int, float]]]
"""Of each token of an output, another program's most likely token ids there with their log-probabilities, best first."""


def deviation_from(
    target: Runtime, texts: Sequence[tuple[Sequence[int], Sequence[int], Top]], stage: Stage
) -> tuple[float, int]:
    """The same for another program of which log-probabilities are known: the largest deviation, and over how many
    positions.

    `texts` are prompts with the program's outputs, as token ids, and what it says of each position.
    """
    deviations: list[float] = []
    for prompt, output, top in texts:
        told = [(best, second) for best, second, *_ in top[1:]]  # the first position follows the prompt
        if told:
            _read(target, prompt, output, 1)
            pairs = [(best[0], second[0]) for best, second in told]
            _, gaps = _gaps(target, output[: len(told)], 1, pairs)
            deviations += [
                abs(gap - (best[1] - second[1])) for gap, (best, second) in zip(gaps, told, strict=True)
            ]
        stage.advance()
    return max(deviations, default=0.0), len(deviations)


def _percentiles(values: Sequence[float]) -> tuple[float, ...]:
    found: list[float] = np.percentile(values, range(101)).tolist() if values else []
    return tuple(round(value, DECIMALS) for value in found)


def _read(target: Runtime, prompt: Sequence[int], output: Sequence[int], size: int) -> None:
    """Begins anew with a prompt, with room for its output in forwards of some tokens."""
    target.reset()
    target.reserve(len(prompt) + len(output) + size)
    target.forward(prompt, keep=1)


def _gaps(
    target: Runtime, tokens: Sequence[int], size: int, pairs: list[tuple[int, int]] | None
) -> tuple[list[tuple[int, int]], list[float]]:
    """Logit gaps after each of the next tokens, read `size` at a time, between two tokens each.

    Args:
        pairs: the two tokens for each position; None: the two best, which are returned.
    """
    rows: list[tuple[int, int]] = []
    gaps: list[float] = []
    for start in range(0, len(tokens), size):
        chunk = tokens[start : start + size]
        logits: Tensor = target.forward(chunk).float()
        for offset in range(len(chunk)):
            row = logits[offset]
            if pairs is None:
                first, second = row.topk(2).indices.tolist()
            else:
                first, second = pairs[start + offset]
            rows.append((first, second))
            gaps.append(float(row[first] - row[second]))
    return rows, gaps
