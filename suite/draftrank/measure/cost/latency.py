"""Forward times in the session's own process, for the cost of a draft.

The kinds of forward are timed in turn, not one after the other, so that drift favours none: their relative
cost is what counts. They are timed at a short and at a long context of the session, because a forward takes
longer with a longer context, and one of many tokens more so.

A forward is slightly faster right after one of the same shape, because buffers and compiled kernels are at
hand. Single-token forwards follow one another in decoding (the baseline's always, a draft's mostly), so each
is timed after another one. A verification follows other forwards, and is timed so.

A shared machine is faster in one minute than in another, and not equally so for every kind of forward. So a
session times its forwards at its beginning, every ten minutes between its prompts and at its end, and uses the mean of these
medians. All arms take part in the same rounds: the target's forward of so many tokens is the same for each of them, and
is timed once.

The forwards of nearly every step of some arm (one token, k+1 tokens, one token of the draft) determine the prediction
and are timed in every round. Other sizes, which only other k and shortened proposals need, are timed in every third.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Literal, NamedTuple

from draftrank.measure.records import ForwardLatency
from draftrank.models.vocabulary_rows import STAND_IN

if TYPE_CHECKING:
    from draftrank.engine.backends.base import Runtime

MIN_ROUNDS = 12
"""Medians of 4 samples scattered by 3 to 5 % between arms that timed the same forward of the same target."""
MAX_ROUNDS = 36
BUDGET_S = 2.0
"""Seconds per context after which no further round begins."""
SELDOM = 3
"""Sizes that few steps need are timed in every so many rounds."""
EVERY_SIZE_TO = 6
"""Verifications of up to so many tokens are all timed; of larger ones those in `_LARGER`."""
_LARGER = (9, 13, 17, 25, 33, 49, 65)


Timed = tuple["Runtime | None", int]
"""What is timed of an arm: the draft's own runtime, if it has one, and k, 0 without speculation."""


class ForwardError(Exception):
    """A forward failed while it was timed."""

    def __init__(self, arms: Sequence[int], reason: Exception) -> None:
        super().__init__(str(reason))
        self.arms, self.reason = arms, reason
        """Places of the arms whose steps run it, and why it failed."""


class _Kind(NamedTuple):
    part: Literal["target", "draft"]
    runtime: Runtime
    tokens: int
    often: bool
    """Whether nearly every step of some arm runs it."""
    arms: tuple[int, ...]
    """Places of the arms whose steps run it."""


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
    target: Runtime, arms: Sequence[Timed], prompts: Sequence[Sequence[int]]
) -> list[tuple[ForwardLatency, ...]]:
    """Times the forwards that the arms' decoding is made of, at each of the given contexts, and returns each arm's own.

    Of the target: see `verification_sizes`. Of a draft with a cache of its own: one token, and two, since
    after a step that accepted everything it lags behind by two.

    Args:
        target: the target's runtime; its sequence is lost.
        arms: what takes part; the sequences of their drafts are lost.
        prompts: the contexts to time them in; sizes that do not fit the window are left out.

    Raises:
        ForwardError: with the arms to leave out.
    """
    found: list[list[ForwardLatency]] = [[] for _ in arms]
    for number, prompt in enumerate(prompts):
        kinds = _prepare(target, arms, prompt)
        times = _time_in_turn(kinds, prompt[-1], warm_up=not number)
        for kind, taken in zip(kinds, times, strict=True):
            latency = ForwardLatency(
                part=kind.part,
                tokens=kind.tokens,
                context=len(prompt),
                median_s=statistics.median(taken),
                samples=len(taken),
            )
            for arm in kind.arms:
                found[arm].append(latency)
    return [tuple(own) for own in found]


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


def read_anew(runtime: Runtime, prompt: Sequence[int]) -> None:
    """Begins a new sequence with a prompt of the target's tokens."""
    runtime.reset()
    runtime.forward([_readable(token, runtime) for token in prompt], keep=1)


def _prepare(target: Runtime, arms: Sequence[Timed], prompt: Sequence[int]) -> list[_Kind]:
    drafts: list[_Kind] = []
    often: dict[int, set[int]] = {}
    sizes: dict[int, list[int]] = defaultdict(list)
    for draft, _ in arms:
        if draft is not None:
            draft.reset()
    read_anew(target, prompt)
    room = target.context_window - len(prompt)
    for place, (draft, k) in enumerate(arms):
        for size in verification_sizes(k):
            if size <= max(1, room):
                sizes[size].append(place)
        often[place] = {1, k + 1} if draft is not None else set(range(k + 2))
        if draft is None:
            continue
        if not draft.length:  # an early exit shares the target's cache, and both are always at the same token
            with _blamed((place,)):
                read_anew(draft, prompt)
            drafts.append(_Kind("draft", draft, 2, often=False, arms=(place,)))
        drafts.append(_Kind("draft", draft, 1, often=True, arms=(place,)))
    return drafts + [
        _Kind("target", target, size, any(size in often[place] for place in places), tuple(places))
        for size, places in sorted(sizes.items())
    ]


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


@contextmanager
def _blamed(arms: Sequence[int]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ForwardError(arms, error) from error


def _time_one(kind: _Kind, token: int) -> float:
    with _blamed(kind.arms):
        return _forward_s(kind, token)


def _forward_s(kind: _Kind, token: int) -> float:
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
