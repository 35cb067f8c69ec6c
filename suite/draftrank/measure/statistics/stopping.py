"""When a session has measured enough."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from draftrank.measure.records import BASELINE, Session, StoppedBy, Trial
from draftrank.measure.statistics.estimates import compare_speed, prompt_spread
from draftrank.measure.statistics.log_ratio import LogRatio

DEFAULT_TARGET_CI = 0.02
"""Relative half-width of every arm's interval at which repeating ends, unless another is asked for."""


@dataclass(frozen=True, slots=True)
class ArmWidth:
    """How well an arm's overall speedup is known so far."""

    speedup: LogRatio | None
    """None where no interval exists."""
    spread: LogRatio | None
    """What prompts alone leave of its error; None where that is unknown yet."""
    hopeless: bool = False
    """Whether repeats can never give an interval: a task with a single prompt, or nothing to compare."""


def spent_s(trials: Iterable[Trial]) -> float:
    """Seconds of decoding so far, of every attempt; what an interrupted run spent counts too."""
    return math.fsum(trial.prefill_s + trial.decode_s for trial in trials)


def narrow_enough(arms: Sequence[ArmWidth], target_ci: float) -> Literal["target_ci", "spread"] | None:
    """Whether another repeat is useless: each arm is narrow, or more repeats cannot make it so.

    An arm is narrow when its interval's relative half-width is at most `target_ci`. It cannot become
    so when what its prompts alone leave is wider: repeats average the machine's noise out, not what
    tells prompts apart.
    """
    narrow = [arm.speedup is not None and arm.speedup.half_width <= target_ci for arm in arms]
    if all(narrow):
        return "target_ci"
    stuck = [arm.hopeless or (arm.spread is not None and arm.spread.half_width > target_ci) for arm in arms]
    return "spread" if all(map(max, narrow, stuck)) else None


def reason_to_stop(
    session: Session, trials: Sequence[Trial], spent: float, working: Container[str]
) -> StoppedBy | None:
    """What ends a session whose required repeats are done, or None when another repeat is worth it.

    It is asked between whole repeats, so there are few looks at the data and each arm has decoded the same prompts;
    `docs/simulation.md` shows what stopping at the first narrow interval does to its coverage.

    Args:
        session: its target interval width and budget decide.
        trials: those that count, one per arm and cell.
        spent: seconds of decoding so far, of all trials.
        working: ids of the arms that can go on; one that broke does not keep the others waiting.
    """
    enough = None
    if session.target_ci is not None:
        baseline = [trial for trial in trials if trial.arm == BASELINE]
        enough = narrow_enough(
            [
                _width(baseline, [trial for trial in trials if trial.arm == arm.id])
                for arm in session.arms
                if arm.kind in ("draft", "control") and arm.id in working
            ],
            session.target_ci,
        )
    if enough == "target_ci":
        return enough
    if session.budget_s is None:
        return "repeats"
    return "budget" if spent >= session.budget_s else enough


def _width(baseline: Sequence[Trial], other: Sequence[Trial]) -> ArmWidth:
    compared = compare_speed(baseline, other)
    overall = compared.overall
    hopeless = overall is None or overall.interval is None
    return ArmWidth(overall.log if overall else None, prompt_spread(baseline, other), hopeless)
