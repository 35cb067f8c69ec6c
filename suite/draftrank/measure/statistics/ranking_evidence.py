"""Which drafts are surely ahead of which, and the ranks that cannot be excluded.

Arms of one session shared their minutes and their prompts, so the ratio of two drafts is better known
than the speedup of either: it is estimated from their own trials, prompt by prompt, without the detour
over the baseline. Rows of different sessions share no minutes; there the difference of their log
speedups counts, its variance the sum of both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from draftrank.measure.records import Trial
from draftrank.measure.statistics.estimates import Estimate, compare_speed
from draftrank.measure.statistics.log_ratio import CONFIDENCE, LogRatio, difference


@dataclass(frozen=True, slots=True)
class Contender:
    """A draft that takes part in a ranking."""

    id: str
    """Unique in the ranking."""
    session: str
    """Id of the session that measured it."""
    speedup: Estimate
    """Over its session's baseline, with an interval."""
    trials: Sequence[Trial] = ()
    """Its own, those that count."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What the evidence says of one contender."""

    rank: tuple[int, int]
    """Best and worst rank that cannot be excluded."""
    ahead: Mapping[str, float]
    """Probability that it is faster than another contender, by id."""


def stand(contenders: Iterable[Contender]) -> dict[str, Standing]:
    """Rank ranges and pairwise probabilities, by id; the order of contenders changes nothing."""
    field = {contender.id: contender for contender in contenders}
    speeds = {id_: contender.speedup.value for id_, contender in field.items()}
    return stand_by(speeds, lambda one, other: ratio_of(field[one], field[other]))


def stand_by(speeds: Mapping[str, float], ratio: Callable[[str, str], LogRatio]) -> dict[str, Standing]:
    """Rank ranges by the rule alone, from speeds and from the log ratio of each pair.

    A contender is surely ahead of another if it is faster with a probability of at least
    1 − 2.5 % ÷ (n−1): each is set against n−1 others, and shared out like this the chance that any of a
    row's verdicts is wrong stays below 5 %, so its range holds its true rank 95 % of the time (Bonferroni;
    Mogstad, Romano, Shaikh & Wilhelm 2024). Who is surely ahead of one is so too of all that this one
    is surely ahead of. The range runs from 1 + the number surely ahead to n − the number surely behind.
    """
    field = sorted(speeds)
    sure = surely(len(field))
    ahead: dict[str, dict[str, float]] = {one: {} for one in field}
    behind: dict[str, set[str]] = {one: set() for one in field}
    for index, one in enumerate(field):
        for other in field[index + 1 :]:
            probability = ratio(one, other).above_one
            ahead[one][other], ahead[other][one] = probability, 1 - probability
            # The higher speed too, so that rows which rest on different cells cannot form a ring.
            if probability >= sure and speeds[one] > speeds[other]:
                behind[one].add(other)
            if 1 - probability >= sure and speeds[other] > speeds[one]:
                behind[other].add(one)
    # Slowest first: what is behind those behind is complete when it is passed on.
    for one in sorted(field, key=speeds.__getitem__):
        behind[one] = behind[one].union(*(behind[other] for other in behind[one]))
    return {
        one: Standing(
            (1 + sum(one in others for others in behind.values()), len(field) - len(behind[one])), ahead[one]
        )
        for one in field
    }


def surely(contenders: int) -> float:
    """Probability of being faster from which one contender among so many is surely ahead of another."""
    return 1 - (1 - CONFIDENCE) / 2 / max(contenders - 1, 1)


def ratio_of(first: Contender, second: Contender) -> LogRatio:
    """Logarithm of the first's speed as a multiple of the second's.

    Raises:
        ValueError: they share no session, and one of them has no interval.
    """
    if first.session == second.session:
        overall = compare_speed(second.trials, first.trials).overall
        if overall is not None and overall.log is not None:
            return overall.log
    if first.speedup.log is None or second.speedup.log is None:
        raise ValueError("only results with an interval can be ranked")
    return difference(first.speedup.log, second.speedup.log)
