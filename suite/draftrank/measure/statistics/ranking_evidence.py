"""Which drafts are surely ahead of which, and the ranks that cannot be excluded.

The arms of one session share their minutes and their prompts, so the ratio of two drafts is known better than
the speedup of either. It is estimated from their own trials, prompt by prompt, without the baseline. Rows of
different sessions share no minutes; they are compared by the difference of their log speedups, whose variance
is the sum of both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from draftrank.measure.records import Trial
from draftrank.measure.statistics.estimates import Estimate, compare_speed
from draftrank.measure.statistics.log_ratio import CONFIDENCE, Floats, LogRatio, difference, error_of, mean_of


@dataclass(frozen=True, slots=True)
class Contender:
    """A draft that takes part in a ranking."""

    id: str
    """Unique in the ranking."""
    session: str
    """Id of the session that measured it."""
    speedup: Estimate
    """Over its session's baseline, with an interval."""
    trials: Callable[[], Sequence[Trial]] = tuple
    """Gives its own, those that count; called only where `tasks` do not suffice."""
    cells: str | None = None
    """Equal for contenders of one session that decoded the same cells; None: unknown."""
    tasks: Mapping[str, Estimate] = field(default_factory=dict)
    """Its speedup by task. With equal `cells` and every task's `left_out` pairs need no look at the trials."""


class Probabilities(Mapping[str, float]):
    """Of one contender: the probability that it is faster than each other one, by id."""

    __slots__ = ("_own", "_place", "_row")

    def __init__(self, own: str, place: Mapping[str, int], row: Floats) -> None:
        self._own, self._place, self._row = own, place, row

    def __getitem__(self, other: str) -> float:
        if other == self._own:
            raise KeyError(other)
        return float(self._row[self._place[other]])

    def __iter__(self) -> Iterator[str]:
        return (other for other in self._place if other != self._own)

    def __len__(self) -> int:
        return len(self._place) - 1


@dataclass(frozen=True, slots=True)
class Standing:
    """What the evidence says of one contender."""

    rank: tuple[int, int]
    """Best and worst rank that cannot be excluded."""
    ahead: Mapping[str, float]
    """Probability that it is faster than another contender, by id."""


def stand(contenders: Iterable[Contender]) -> dict[str, Standing]:
    """Rank ranges and pairwise probabilities, by id; the order of contenders changes nothing.

    Raises:
        ValueError: two of them share no session, and one of them has no interval.
    """
    rivals = sorted(contenders, key=lambda contender: contender.id)
    speeds = np.array([contender.speedup.value for contender in rivals])
    return _standings([contender.id for contender in rivals], speeds, _probabilities(rivals))


def stand_by(speeds: Mapping[str, float], ratio: Callable[[str, str], LogRatio]) -> dict[str, Standing]:
    """Rank ranges by the rule alone, from speeds and from the log ratio of each pair."""
    ids = sorted(speeds)
    probabilities = np.full((len(ids), len(ids)), 0.5)
    for row, one in enumerate(ids):
        for column in range(row + 1, len(ids)):
            probabilities[row, column] = ratio(one, ids[column]).above_one
            probabilities[column, row] = 1 - probabilities[row, column]
    return _standings(ids, np.array([speeds[one] for one in ids]), probabilities)


def _standings(ids: Sequence[str], speeds: Floats, probabilities: Floats) -> dict[str, Standing]:
    """The rule.

    A contender is surely ahead of another if it is faster with a probability of at least
    1 − 2.5 % ÷ (n−1): each is set against n−1 others, and shared out like this the chance that any of a
    row's verdicts is wrong stays below 5 %, so its range holds its true rank 95 % of the time (Bonferroni;
    Mogstad, Romano, Shaikh & Wilhelm 2024). Who is surely ahead of one is so too of all that this one
    is surely ahead of. The range runs from 1 + the number surely ahead to n − the number surely behind.

    Args:
        ids: n contenders.
        speeds: (n,) their speedups.
        probabilities: (n, n) that the row's contender is faster than the column's.
    """
    # The higher speed too, so that rows which rest on different cells cannot form a ring.
    behind: NDArray[np.bool_] = (probabilities >= surely(len(ids))) & (speeds[:, None] > speeds[None, :])
    # Slowest first: what is behind those behind is complete when it is passed on.
    for row in np.argsort(speeds, kind="stable"):
        behind[row] |= behind[behind[row]].any(axis=0)
    place = {one: index for index, one in enumerate(ids)}
    best, worst = 1 + behind.sum(axis=0), len(ids) - behind.sum(axis=1)
    return {
        one: Standing((int(best[index]), int(worst[index])), Probabilities(one, place, probabilities[index]))
        for one, index in place.items()
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
        if _alike(first, second):
            return mean_of([_ratio_in_task(first.tasks[task], second.tasks[task]) for task in first.tasks])
        overall = compare_speed(second.trials(), first.trials()).overall
        if overall is not None and overall.log is not None:
            return overall.log
    if first.speedup.log is None or second.speedup.log is None:
        raise ValueError("only results with an interval can be ranked")
    return difference(first.speedup.log, second.speedup.log)


def _alike(first: Contender, second: Contender) -> bool:
    """Whether their tasks' estimates rest on the same prompts, so that differences mean something."""
    if first.cells is None or first.cells != second.cells or first.tasks.keys() != second.tasks.keys():
        return False
    prompts = [(len(first.tasks[task].left_out), len(second.tasks[task].left_out)) for task in first.tasks]
    return bool(prompts) and all(one and one == other for one, other in prompts)


def _ratio_in_task(first: Estimate, second: Estimate) -> LogRatio:
    """The logarithm of a ratio of speeds is a difference of logarithms, with every prompt left out as with all."""
    assert first.log is not None
    assert second.log is not None
    apart = np.subtract(first.left_out, second.left_out)
    return LogRatio(first.log.value - second.log.value, *error_of(apart))


def _probabilities(rivals: Sequence[Contender]) -> Floats:
    """(n, n): that the row's contender is faster than the column's; 0.5 on the diagonal."""
    found = np.full((len(rivals), len(rivals)), np.nan)
    paired: dict[tuple[str, str], list[int]] = defaultdict(list)
    sessions: dict[str, int] = {}
    for index, contender in enumerate(rivals):
        sessions.setdefault(contender.session, len(sessions))
        if contender.cells is not None:
            paired[contender.session, contender.cells].append(index)
    for group in paired.values():
        if all(_alike(rivals[group[0]], rivals[index]) for index in group):
            found[np.ix_(group, group)] = _among([rivals[index].tasks for index in group])
    logs = [contender.speedup.log for contender in rivals]
    session = np.array([sessions[contender.session] for contender in rivals])
    for row, log in enumerate(logs):
        for column in np.flatnonzero(np.isnan(found[row]) & (session == session[row])).tolist():
            if row < column:
                found[row, column] = ratio_of(rivals[row], rivals[column]).above_one
                found[column, row] = 1 - found[row, column]
        elsewhere = np.flatnonzero(session != session[row])
        if len(elsewhere):
            others = [logs[column] for column in elsewhere]
            known = [other for other in others if other is not None]
            if log is None or len(known) < len(others):
                raise ValueError("only results with an interval can be ranked")
            found[row, elsewhere] = _against_independent(log, known)
    np.fill_diagonal(found, 0.5)
    return found


def _among(tasks: Sequence[Mapping[str, Estimate]]) -> Floats:
    """`_probabilities` of contenders that decoded the same cells: as `ratio_of` of each pair, all at once."""
    names = list(tasks[0])
    left = [np.array([found[name].left_out for found in tasks]) for name in names]
    values = np.array([np.mean([found[name].log.value for name in names]) for found in tasks])  # type: ignore[union-attr]
    return np.array(
        [_above_one(values[row] - values, [own[row] - own for own in left]) for row in range(len(tasks))]
    )


def _above_one(values: Floats, left: Sequence[Floats]) -> Floats:
    """Probabilities that ratios are above 1, from their logarithms (n,) and, of each task, the differences
    without each prompt in turn (n, prompts)."""
    total, below = np.zeros(len(values)), np.zeros(len(values))
    for own in left:
        prompts = own.shape[1]
        spread = np.sum((own - own.mean(axis=1, keepdims=True)) ** 2, axis=1)
        variance = (prompts - 1) / prompts * spread / len(left) ** 2
        total += variance
        below += variance**2 / (prompts - 1)
    return _t_above_zero(values, total, below)


def _against_independent(log: LogRatio, others: Sequence[LogRatio]) -> Floats:
    """Probabilities of being above figures of other sessions: see `difference`."""
    values = log.value - np.array([other.value for other in others])
    variances = np.array([other.standard_error**2 for other in others])
    freedom = np.array([other.freedom for other in others])
    own = log.standard_error**2
    return _t_above_zero(values, own + variances, own**2 / log.freedom + variances**2 / freedom)


def _t_above_zero(values: Floats, variances: Floats, below: Floats) -> Floats:
    """`below`: Σ variance² ÷ freedom over the parts, of Welch & Satterthwaite's formula."""
    from scipy.special import stdtr

    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = stdtr(variances**2 / below, values / np.sqrt(variances))
    # (stdtr of endlessly many degrees of freedom, or of no error at all, is no number.)
    return np.where(np.isfinite(found), found, 0.5 + 0.5 * np.sign(values))
