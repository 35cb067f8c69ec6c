"""What the steps of some trials did, and what they would have done with another number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import fsum

from draftrank.measure.cost.acceptance import sum_acceptance
from draftrank.measure.cost.forward_times import ForwardTimes
from draftrank.measure.records import Trial


@dataclass(frozen=True, slots=True)
class StepCost:
    """Steps and the forwards they take; counts are expectations and need not be whole."""

    context: float
    """Tokens held in the middle of the outputs."""
    steps: int
    emitted: float
    """Tokens emitted by these steps."""
    sizes: tuple[float, ...]
    """Entry i: steps that verify i proposed tokens."""
    draft_forwards: float
    full: float
    """Steps that accept all they proposed, after which a draft with its own cache reads two tokens."""
    lookup_s: float
    """Seconds of proposing without a model."""

    def baseline_s(self, times: ForwardTimes) -> float:
        """Seconds of emitting the same tokens one by one."""
        return self.emitted * times.target_s(1, self.context)

    def verify_s(self, times: ForwardTimes) -> float:
        """Seconds of the target's forwards."""
        return fsum(
            count * times.target_s(size + 1, self.context) for size, count in enumerate(self.sizes) if count
        )

    def draft_s(self, times: ForwardTimes) -> float:
        """Seconds of the draft's forwards."""
        if not self.draft_forwards:
            return 0.0
        one, two = times.draft_s(1, self.context), times.draft_s(2, self.context)
        return self.draft_forwards * one + self.full * (two - one)

    def seconds(self, times: ForwardTimes) -> float:
        """Seconds of decoding."""
        return self.verify_s(times) + self.draft_s(times) + self.lookup_s


@dataclass(frozen=True, slots=True)
class StepCounts:
    """The counts that the cost of some trials depends on."""

    context: float
    steps: int
    sizes: tuple[float, ...]
    """Entry i: steps that verified i proposed tokens; estimated for trials that do not tell."""
    accepted_at: tuple[int, ...]
    """Entry i: steps that accepted an (i+1)-th token."""
    offered: tuple[int, ...]
    """See `Trial.offered`."""
    forwards_per_token: float
    """Forwards of the draft's model per verified token: 1, or 0 without a model; between where some steps copy."""
    lookup_s: float

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> StepCounts:
        """The counts of a draft's trials, all of the same k, at least one of them with steps."""
        found = sum_acceptance(trials)
        steps = found.steps
        told = (trial.proposal_sizes or _estimated_sizes(trial) for trial in trials)
        sizes = tuple(map(fsum, zip_longest(*told, fillvalue=0.0)))
        verified = fsum(size * count for size, count in enumerate(sizes))
        forwards = sum(trial.draft_forwards for trial in trials)
        return cls(
            context=fsum(mean_context(trial) * trial.steps for trial in trials) / steps,
            steps=steps,
            sizes=sizes,
            accepted_at=tuple(sum(found.histogram[place:]) for place in range(1, len(found.histogram))),
            offered=found.offered,
            forwards_per_token=min(1.0, forwards / verified) if verified else 0.0,
            lookup_s=fsum(trial.propose_s for trial in trials if not trial.draft_forwards),
        )

    @property
    def k(self) -> int:
        """Tokens proposed per step at most."""
        return len(self.offered)

    def at(self, k: int) -> StepCost:
        """The same steps with at most k proposed tokens.

        Below the trials' own k this follows from what was seen: a step accepts the smaller of what it
        accepted and k. Above it, steps that proposed all they could propose on, and each further token is
        accepted as often as that of the last position that was offered.
        """
        rejected = sum(self.offered[:k]) - sum(self.accepted_at[:k])
        accepted = float(sum(self.accepted_at[:k]))
        if k <= self.k:
            sizes = (*self.sizes[:k], fsum(self.sizes[k:]))
            full = self.steps - sizes[0] - rejected
        else:
            sizes = (*self.sizes[: self.k], *(0.0,) * (k - self.k), self.sizes[self.k])
            whole = float(self.accepted_at[-1]) if self.accepted_at else 0.0
            further = [whole * self._last_rate**place for place in range(1, k - self.k + 1)]
            accepted += fsum(further)
            full = self.steps - sizes[0] - rejected - (whole - further[-1])
        return StepCost(
            context=self.context,
            steps=self.steps,
            emitted=self.steps + accepted,
            sizes=sizes,
            draft_forwards=self.forwards_per_token * fsum(size * count for size, count in enumerate(sizes)),
            full=self.forwards_per_token * max(0.0, full),
            lookup_s=self.lookup_s,
        )

    @property
    def _last_rate(self) -> float:
        for offered, accepted in zip(reversed(self.offered), reversed(self.accepted_at), strict=True):
            if offered:
                return min(1.0, accepted / offered)  # a damaged record may say more
        return 0.0


def mean_context(trial: Trial) -> float:
    """Tokens held by the target in the middle of an output."""
    return trial.prompt_tokens + len(trial.token_ids) / 2


def _estimated_sizes(trial: Trial) -> tuple[float, ...]:
    """From sums alone: steps that offered nothing; of the others as many of k tokens as the sum allows,
    the rest of one token."""
    k = len(trial.offered)
    if not k:
        return (float(trial.steps),)
    proposing = trial.offered[0]
    total = min(max(trial.proposed, trial.draft_forwards, proposing), k * proposing)
    longer = (total - proposing) / (k - 1) if k > 1 else 0.0
    counts = [0.0] * (k + 1)
    counts[0] = float(trial.steps - proposing)
    counts[1] += proposing - longer
    counts[k] += longer
    return tuple(counts)
