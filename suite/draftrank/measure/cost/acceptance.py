"""How many of a draft's tokens the target keeps, derived from the histograms of its trials."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest

from draftrank.measure.records import Trial


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Sums over trials and the means that follow from them."""

    histogram: tuple[int, ...]
    """Entry i: steps that accepted exactly i proposed tokens."""
    offered: tuple[int, ...]
    """Entry i: steps that proposed an (i+1)-th token and accepted the i before it."""
    proposed: int
    """Proposed tokens over all steps."""

    @property
    def steps(self) -> int:
        """Verification forwards after the prefill."""
        return sum(self.histogram)

    @property
    def accepted(self) -> int:
        """Accepted and emitted tokens."""
        return sum(count * steps for count, steps in enumerate(self.histogram))

    @property
    def length(self) -> float | None:
        """Emitted tokens ÷ steps, a ratio of sums with the bonus token; None without steps."""
        return (self.steps + self.accepted) / self.steps if self.steps else None

    @property
    def rate(self) -> float | None:
        """Accepted ÷ proposed; None where nothing was proposed."""
        return self.accepted / self.proposed if self.proposed else None

    @property
    def by_position(self) -> tuple[float | None, ...]:
        """Entry i: share of steps whose (i+1)-th token was accepted, given that it was proposed and the
        i before it accepted; None where no step got that far."""
        return tuple(
            sum(self.histogram[position + 1 :]) / offered if offered else None
            for position, offered in enumerate(self.offered)
        )


def sum_acceptance(trials: Iterable[Trial]) -> Acceptance:
    """Adds up the histograms of trials, which may differ in length."""
    trials = tuple(trials)
    return Acceptance(
        _add(trial.accept_histogram for trial in trials),
        _add(trial.offered for trial in trials),
        sum(trial.proposed for trial in trials),
    )


def _add(rows: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(sum(column) for column in zip_longest(*rows, fillvalue=0))
