"""Forward times in the session's own process, for the cost of a draft.

The kinds of forward are timed in turn, not one after the other, so that drift does not favour one.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from draftrank.measure.records import ForwardLatency

if TYPE_CHECKING:
    from draftrank.decoding.runtime import Runtime

SAMPLES = 12
WARM_UP = 3


def measure_latencies(
    target: Runtime, draft: Runtime | None, num_speculative_tokens: int, prompt: Sequence[int]
) -> tuple[ForwardLatency, ...]:
    """Times single-token forwards of target and draft, and the verification of k+1 tokens.

    Args:
        target: the target's runtime; its sequence is lost.
        draft: the draft's own runtime, if it has one; its sequence is lost.
        num_speculative_tokens: k; 0 for an autoregressive arm.
        prompt: the context to time them in.
    """
    kinds: list[tuple[str, Runtime, int]] = [("target", target, 1)]
    if num_speculative_tokens:
        kinds.append(("target", target, num_speculative_tokens + 1))
    if draft is not None:
        kinds.append(("draft", draft, 1))
    target.reset()
    target.feed(prompt, keep=1)
    # An early-exit draft shares the target's cache and is filled already.
    if draft is not None and draft.length != target.length:
        draft.reset()
        draft.feed(prompt, keep=1)
    times: list[list[float]] = [[] for _ in kinds]
    for sample in range(WARM_UP + SAMPLES):
        for index, (_, runtime, tokens) in enumerate(kinds):
            fed = [prompt[-1]] * tokens
            runtime.synchronize()
            started = perf_counter()
            # The token must be chosen before the next forward can start, so that is part of it.
            runtime.feed(fed).argmax(dim=-1).tolist()
            elapsed = perf_counter() - started
            runtime.forget(tokens)
            if sample >= WARM_UP:
                times[index].append(elapsed)
    return tuple(
        ForwardLatency(
            part="target" if part == "target" else "draft",
            tokens=tokens,
            context=len(prompt),
            median_s=statistics.median(taken),
            samples=len(taken),
        )
        for (part, _, tokens), taken in zip(kinds, times, strict=True)
    )
