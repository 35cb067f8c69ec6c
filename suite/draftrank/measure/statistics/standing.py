"""Which trials count where a prompt turn was decoded more than once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from draftrank.measure.records import Trial


def standing_trials(trials: Iterable[Trial]) -> list[Trial]:
    """Of each cell (task, prompt, turn, repeat) the trials of one attempt: the fullest, then the last.

    Arms are only comparable within one attempt, since only its trials shared their minutes. An attempt
    is made again only when the one before was disturbed, so the last is the calmest; one that was cut
    short by an interruption is passed over. Earlier attempts stay in the store.
    """
    trials = list(trials)
    arms = Counter((trial.cell, trial.attempt) for trial in trials)
    chosen: dict[tuple[str, str, int, int], tuple[int, int]] = {}
    for (cell, attempt), count in arms.items():
        chosen[cell] = max(chosen.get(cell, (0, 0)), (count, attempt))
    return [trial for trial in trials if trial.attempt == chosen[trial.cell][1]]
