"""Forward times in the session's own process, for the cost of a draft.

The kinds of forward are timed in turn, not one after the other, so that drift favours none: their relative
cost is what counts. They are timed at a short and at a long context of the session, because a forward takes
longer with a longer context, and one of many tokens more so.

A forward is slightly faster right after one of the same shape, because buffers and compiled kernels are at
hand. Single-token forwards follow one another in decoding (the baseline's always, a draft's mostly), so each
is timed after another one. A verification follows other forwards, and is timed so.

A shared machine is faster in one minute than in another, and not equally so for every kind of forward. So a
session times its forwards repeatedly between its prompts, and uses the mean.

The forwards of nearly every step (one token, k+1 tokens, one token of the draft) determine the prediction and
are timed in every round. Other sizes, which only other k and shortened proposals need, are timed in every
third.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Literal, NamedTuple

from draftrank.measure.records import ForwardLatency
from draftrank.models.vocabulary_rows import STAND_IN

if TYPE_CHECKING:
    from draftrank.engine.backends.base import Runtime

MIN_ROUNDS = 12
"""Medians of 4 samples scattered by 3 to 5 % between arms that timed the same forward of the same target."""
MAX_ROUNDS = 36
BUDGET_S = 1.0
"""Seconds per context after which no further round begins."""
SELDOM = 3
"""Sizes that few steps need are timed in every so many rounds."""
EVERY_SIZE_TO = 6
"""Verifications of up to so many tokens are all timed; of larger ones those in `_LARGER`."""
_LARGER = (9, 13, 17, 25, 33, 49, 65)


class _Kind(NamedTuple):
    part: Literal["target", "draft"]
    runtime: Runtime
    tokens: int
    often: bool
    """Whether nearly every step runs it."""


def verification_sizes(num_speculative_tokens: int) -> tuple[int, ...]:
    """Sizes of target forward that are timed for a k: 1 to k+1, and two beyond, so that the cost of a
    larger k is interpolated and not guessed. Of a large k some sizes are left out."""
    own = num_speculative_tokens + 1
    if own == 1:
        return (1,)
    dense = range(1, min(own, EVERY_SIZE_TO) + 1)
    beyond = [size for size in (5, 9) if size > own]
    return tuple(sorted({*dense, own, *(size for size in _LARGER if size < own), *beyond}))


def measure_latencies(
    target: Runtime, draft: Runtime | None, num_speculative_tokens: int, prompts: Sequence[Sequence[int]]
) -> tuple[ForwardLatency, ...]:
    """Times the forwards that decoding is made of, at each of the given contexts.

    Of the target: see `verification_sizes`. Of a draft with a cache of its own: one token, and two, since
    after a step that accepted everything it lags behind by two.

    Args:
        target: the target's runtime; its sequence is lost.
        draft: the draft's own runtime, if it has one; its sequence is lost.
        num_speculative_tokens: k; 0 for an autoregressive arm.
        prompts: the contexts to time them in; sizes that do not fit the window are left out.
    """
    found: list[ForwardLatency] = []
    for prompt in prompts:
        kinds = _prepare(target, draft, num_speculative_tokens, prompt)
        times = _time_in_turn(kinds, prompt[-1], warm_up=not found)
        found += [
            ForwardLatency(
                part=kind.part,
                tokens=kind.tokens,
                context=len(prompt),
                median_s=statistics.median(taken),
                samples=len(taken),
            )
            for kind, taken in zip(kinds, times, strict=True)
        ]
    return tuple(found)


def averaged(looks: Iterable[ForwardLatency]) -> tuple[ForwardLatency, ...]:
    """One entry per kind of forward: the mean of its medians, weighted by their samples."""
    found: dict[tuple[str, int, int], list[ForwardLatency]] = {}
    for look in looks:
        found.setdefault((look.part, look.tokens, look.context), []).append(look)
    return tuple(_mean(entries) for entries in found.values())


def _mean(entries: Sequence[ForwardLatency]) -> ForwardLatency:
    samples = sum(entry.samples for entry in entries)
    total = math.fsum(entry.median_s * entry.samples for entry in entries)
    return entries[0].model_copy(update={"median_s": total / samples, "samples": samples})


def _prepare(
    target: Runtime, draft: Runtime | None, num_speculative_tokens: int, prompt: Sequence[int]
) -> list[_Kind]:
    target.reset()
    if draft is not None:
        draft.reset()
    target.forward(prompt, keep=1)
    sizes = verification_sizes(num_speculative_tokens)
    room = target.context_window - len(prompt)
    steady = {1, num_speculative_tokens + 1} if draft is not None else set(range(num_speculative_tokens + 2))
    kinds = [_Kind("target", target, size, size in steady) for size in sizes if size <= max(1, room)]
    if draft is None:
        return kinds
    if draft.length:  # an early exit shares the target's cache, and both are always at the same token
        return [_Kind("draft", draft, 1, often=True), *kinds]
    draft.forward([_readable(token, draft) for token in prompt], keep=1)
    return [_Kind("draft", draft, 2, often=False), _Kind("draft", draft, 1, often=True), *kinds]


def _time_in_turn(kinds: Sequence[_Kind], token: int, *, warm_up: bool) -> list[list[float]]:
    """Seconds of each kind, one sample per round in which its turn comes."""
    times: list[list[float]] = [[] for _ in kinds]
    if warm_up:
        for kind in kinds:
            _time_one(kind, token)
    began = perf_counter()
    for sample in range(MAX_ROUNDS):
        if sample >= MIN_ROUNDS and perf_counter() - began > BUDGET_S:
            break
        for taken, kind in zip(times, kinds, strict=True):
            if not kind.often and sample % SELDOM:
                continue
            if kind.tokens == 1:
                _time_one(kind, token)
            taken.append(_time_one(kind, token))
    return times


def _time_one(kind: _Kind, token: int) -> float:
    from draftrank.engine.sampling import most_likely_after

    runtime = kind.runtime
    tokens = [_readable(token, runtime)] * kind.tokens
    if runtime.capabilities.device:
        return runtime.forward_s(tokens)
    runtime.synchronize()
    started = perf_counter()
    # The token must be chosen before the next forward can start, so that is part of it; a draft that chooses by itself
    # does so here as well.
    if kind.part == "draft" and runtime.capabilities.chain:
        runtime.chain(tokens, 1, 0.0)
    else:
        most_likely_after(runtime, runtime.forward(tokens))
    elapsed = perf_counter() - started
    runtime.rollback(kind.tokens)
    return elapsed


def _readable(token: int, runtime: Runtime) -> int:
    """A token that the runtime can read: a draft with another vocabulary than the target's may have fewer."""
    return token if token < runtime.vocabulary_size else STAND_IN
