"""A comparison as Markdown, for the pull request that brought a draft or a result.

The records behind it may come from a stranger: every text of theirs stands between backticks or is
escaped, so that it can neither link, nor mention anybody, nor break out of its table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from draftrank.board.formats import UNKNOWN, decimal, span, times
from draftrank.board.ranking import build_boards
from draftrank.board.rows import Board, BoardRow
from draftrank.catalog.plain_text import UNSEEN
from draftrank.errors import InvalidInputError
from draftrank.measure.records import SessionResult
from draftrank.measure.statistics.comparing import SpeedRatio, compare
from draftrank.measure.statistics.estimates import Interval

_MARKUP = re.compile(r"([\\`*_{}\[\]()#+.!|<>~&@:-])")


@dataclass(frozen=True, slots=True)
class Standing:
    """One draft of a session against the drafts it has to beat."""

    row: BoardRow
    against: tuple[tuple[str, SpeedRatio], ...]
    """Ids of other drafts of the session, with this draft's speed as a multiple of theirs."""

    @property
    def is_record(self) -> bool:
        """Whether it is ranked, and surely faster than every other draft it was measured beside."""
        return (
            self.row.ranked
            and not self.row.lossy
            and bool(self.against)
            and all(ratio.answer == "faster" for _, ratio in self.against)
        )


def standings(
    results: Iterable[SessionResult], drafts: Iterable[str] = ()
) -> tuple[tuple[Board, tuple[Standing, ...]], ...]:
    """Each session's drafts in question (none named: all) set against all its others, prompt by prompt."""
    wanted = set(drafts)
    found = []
    for result in results:
        (board,) = build_boards([result])
        rows = [row for row in board.rows if not wanted or row.draft in wanted]
        told = tuple(Standing(row, tuple(_ratios(result, board, row))) for row in rows)
        if told:
            found.append((board, told))
    return tuple(found)


def _ratios(result: SessionResult, board: Board, row: BoardRow) -> Iterable[tuple[str, SpeedRatio]]:
    for other in board.rows:
        if other.draft == row.draft or other.lossy != row.lossy:
            continue
        try:
            ratio = compare([result], row.draft, other.draft).overall
        except InvalidInputError:  # one of them has no trials
            continue
        if ratio is not None:
            yield other.draft, ratio


def markdown(told: Sequence[tuple[Board, Sequence[Standing]]]) -> str:
    """The comparison, a section for each session; ends with a line feed."""
    if not told:
        return "There is no result to tell of.\n"
    return "\n".join(line for board, found in told for line in _section(board, found)) + "\n"


def _section(board: Board, found: Sequence[Standing]) -> Iterable[str]:
    key, session = board.key, board.newest
    noise = session.noise
    yield f"### {_code(key.target)}: {_code(key.suite)}, {_code(key.backend_and_dtype)}, {_code(key.mode)}, {_code(key.machine_class)}"
    yield ""
    yield (
        f"Plain decoding {decimal(session.baseline_tokens_per_second, 1)} tokens/s"
        + (f", against itself (A/A) {_ratio(noise.value, noise.interval)}" if noise else "")
        + f"; {session.prompts} prompts of {len(board.tasks)} tasks; session {_code(session.id)}."
    )
    yield ""
    yield "| draft | speedup (95 % interval) | against | accept | cost | output | verdict |"
    yield "|---|---|---|---|---|---|---|"
    for one in found:
        row = one.row
        against = "<br>".join(
            f"{_code(name)} {_ratio(ratio.value, ratio.interval)}: **{ratio.answer}**"
            for name, ratio in one.against
        )
        cells = (
            _code(row.draft),
            _ratio(row.speedup, row.interval),
            against or UNKNOWN,
            decimal(row.acceptance_length),
            decimal(row.draft_cost),
            _output(row),
            _verdict(one),
        )
        yield f"| {' | '.join(cells)} |"
    yield ""
    notes = [
        f"- {_code(one.row.draft)}: {_plain(finding.reason)}" for one in found for finding in one.row.findings
    ]
    notes += [f"- {_code(one.row.draft)}: {_plain(remark)}" for one in found for remark in one.row.remarks]
    notes += [f"- {_plain(warning)}" for warning in session.warnings]
    if notes:
        yield "\n".join(dict.fromkeys(notes))
        yield ""


def _verdict(one: Standing) -> str:
    if not one.row.ranked:
        return "**not ranked**"
    if one.is_record:
        return "**faster than all it was measured beside**"
    answers = {ratio.answer for _, ratio in one.against}
    if "slower" in answers:
        return "slower than " + ", ".join(
            _code(name) for name, ratio in one.against if ratio.answer == "slower"
        )
    return "ranked" if not answers else "can't tell"


def _output(row: BoardRow) -> str:
    fidelity = row.fidelity
    if row.lossy:
        return "lossy"
    if fidelity.status == "ties":
        return f"identical up to {fidelity.ties} ties"
    if fidelity.status == "identical":
        return "identical"
    return f"**{fidelity.breaks} breaks**" if fidelity.breaks else _plain(fidelity.status)


def _ratio(value: float | None, interval: Interval | None) -> str:
    return times(value) + (f" ({span((interval.low, interval.high))})" if interval else "")


def _code(text: str) -> str:
    """Text between backticks, where nothing is markup; characters that would end them are dropped."""
    return "`" + re.sub(r"[`|\s]+", " ", UNSEEN.sub("", text))[:200].strip() + "`"


def _plain(text: str) -> str:
    """Text in which nothing is markup, on one line."""
    flat = re.sub(r"\s+", " ", UNSEEN.sub("", text))[:1000]
    return _MARKUP.sub(r"\\\1", flat)
