"""What concurrency does to each technique: for each server, the draft of the technique that gains most there."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from draftrank.board.formats import times
from draftrank.board.serving import ServedFigures, ServedRow, ServingBoard

Trend = Literal["falls", "rises", "can't tell"]
_UNCLEAR: Trend = "can't tell"
_TECHNIQUES: Mapping[str, str] = {
    "ngram": "n-gram",
    "ngram-simple": "n-gram",
    "suffix": "suffix decoding",
    "draft_model": "draft model",
    "draft-simple": "draft model",
    "standalone": "draft model",
    "eagle": "EAGLE head",
    "eagle3": "EAGLE-3 head",
    "draft-eagle3": "EAGLE-3 head",
}
"""Techniques by what engines call them, in the order in which they are shown; other methods follow under their own names."""


@dataclass(frozen=True, slots=True)
class ServedTechnique:
    """One technique in one server."""

    technique: str
    board: ServingBoard
    where: str
    """Target and engine; the board's title where another board has the same ones."""
    row: ServedRow
    """Of the board's drafts of this technique the one with the highest product of ranked speedups."""

    @property
    def _ends(self) -> tuple[ServedFigures, ServedFigures]:
        """Where it is ranked with the fewest requests in flight, and with the most."""
        ranked = [cell for cell in self.row.best.values() if cell.ranked]
        return ranked[0], ranked[-1]

    @property
    def trend(self) -> Trend | None:
        """Whether the speedup with the most requests in flight is surely lower or higher than with the fewest: their
        intervals do not overlap. None where it is ranked at one concurrency only."""
        first, last = self._ends
        if first is last:
            return None
        if first.ci is None or last.ci is None:
            return _UNCLEAR
        return "falls" if last.ci[1] < first.ci[0] else "rises" if last.ci[0] > first.ci[1] else _UNCLEAR

    @property
    def reverses(self) -> bool:
        """Whether a sure gain with the fewest requests in flight is a sure loss with the most."""
        first, last = self._ends
        return (first.answer, last.answer) == ("faster", "slower")

    @property
    def finding(self) -> str:
        """What becomes of its speedup, after the words "the speedup"."""
        first, last = self._ends
        start = f"{times(first.speedup)} at {_in_flight(first.concurrency)}"
        end = f"{times(last.speedup)} at {last.concurrency}"
        if self.trend is None:
            return f"is {start}, the only concurrency at which it is ranked"
        if self.trend == _UNCLEAR:
            found = f"is {start} and {end}, which are not told apart"
        else:
            found = f"{self.trend} from {start} to {end}"
        return f"{found} (switch-off: {self.row.switch_off.words})"


def served_techniques(boards: Sequence[ServingBoard]) -> dict[str, tuple[ServedTechnique, ...]]:
    """By technique, what each server's board shows; only drafts that are ranked count.

    Boards of an open loop are left out: its rate decides how many requests are in flight. Boards with one title differ in
    their prompts only: of them the first that ranks the technique counts, the newest as `build_serving_boards` orders them.
    """
    closed = [board for board in boards if board.key.rate is None]
    names = Counter({board.key.title: _short(board) for board in closed}.values())
    found: dict[str, list[ServedTechnique]] = defaultdict(list)
    for board in closed:
        where = _short(board) if names[_short(board)] == 1 else board.key.title
        leading: dict[str, ServedRow] = {}
        for row in board.rows:
            if row.ranked:
                leading.setdefault(_TECHNIQUES.get(row.method, row.method), row)
        for technique, row in leading.items():
            if board.key.title not in {one.board.key.title for one in found[technique]}:
                found[technique].append(ServedTechnique(technique, board, where, row))
    order = [*dict.fromkeys(_TECHNIQUES.values()), *sorted(found.keys() - set(_TECHNIQUES.values()))]
    return {technique: tuple(found[technique]) for technique in order if technique in found}


def effect_of_concurrency(techniques: Mapping[str, Sequence[ServedTechnique]]) -> str:
    """What all of them show together, in a sentence; empty where none is ranked at two concurrencies."""
    cases = [one for of_one in techniques.values() for one in of_one if one.trend is not None]
    if not cases:
        return ""
    count = Counter(one.trend for one in cases)
    return (
        f"From the fewest to the most requests in flight, the speedup falls for {count['falls']} of {len(cases)} techniques "
        f"in a server, rises for {count['rises']}, and is not told apart for {count[_UNCLEAR]}. For "
        f"{sum(one.reverses for one in cases)} a sure gain becomes a sure loss."
    )


def _short(board: ServingBoard) -> str:
    return f"{board.key.target} in {board.key.engine_and_dtype}"


def _in_flight(concurrency: int) -> str:
    return f"{concurrency} request{'s' if concurrency > 1 else ''} in flight"
