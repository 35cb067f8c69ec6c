"""When a session has measured enough."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from draftrank.measure.records import BASELINE, Session, StoppedBy, Trial
from draftrank.measure.statistics import Estimate, compare_speed, prompt_spread

DEFAULT_PRECISION = 0.02


def spent_s(trials: Iterable[Trial]) -> float:
    """Seconds of decoding so far, of every attempt; what an interrupted run spent counts too."""
    return math.fsum(trial.prefill_s + trial.decode_s for trial in trials)


def reason_to_stop(session: Session, trials: Sequence[Trial]) -> StoppedBy | None:
    """What ends a session whose required repeats are done, or None when another repeat is worth it.

    It is asked between whole repeats, so there are few looks at the data and each arm has decoded the
    same prompts; `docs/methodology.md` shows by simulation what stopping at the first narrow interval
    does to its coverage.

    Args:
        session: its precision and budget decide.
        trials: those that count, one per arm and cell.
    """
    arms = [arm.id for arm in session.arms if arm.kind in ("draft", "control") and arm.failure is None]
    baseline = [trial for trial in trials if trial.arm == BASELINE]
    others = {arm: [trial for trial in trials if trial.arm == arm] for arm in arms}
    if session.precision is not None:
        wide = [
            arm
            for arm in arms
            if not _narrow(compare_speed(baseline, others[arm]).overall, session.precision)
        ]
        if not wide:
            return "precision"
    if session.budget_s is None:
        return "repeats"
    if spent_s(trials) >= session.budget_s:
        return "budget"
    if session.precision is not None and any(
        (spread := prompt_spread(baseline, others[arm])) is not None and spread > session.precision
        for arm in wide
    ):
        # Repeats of the same prompts average the machine's noise out, not what tells prompts apart.
        return "spread"
    return None


def _narrow(estimate: Estimate | None, precision: float) -> bool:
    if estimate is None or estimate.interval is None:
        return False
    return estimate.interval.half_width / estimate.value <= precision
