"""Writes what is generated from the published bundles: the front table of `README.md` and the tables of
`docs/results.md`. Run it after results were published; a test says when it is due.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from draftrank.board.earlier import EARLIER, mark_earlier
from draftrank.board.formats import day, decimal, rank, span, times
from draftrank.board.ranking import build_boards
from draftrank.board.rows import Board, BoardKey, BoardRow
from draftrank.board.serving import ServedRow, ServingBoard, ServingKey
from draftrank.board.serving_ranking import build_serving_boards
from draftrank.store.bundle import load_results
from draftrank.store.serving_bundle import SERVING_FILES

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "docs" / "results.md"
FRONT_TARGET = "smollm2-135m-instruct"
"""The target of the first run, whose board stands on the front page."""
FRONT_ROWS = 6
SECTION = re.compile(
    r"(<!-- (?P<kind>board|leaders|boards|servings):? ?(?P<names>[\w. -]*?) -->\n).*?(<!-- /(?P=kind) -->)",
    re.DOTALL,
)


@cache
def published() -> tuple[Board, ...]:
    """The boards of the published bundles, best first: the newest version, the suite with the most prompts, the
    fastest baseline."""
    return tuple(sorted(_marked()[0], key=_order))


@cache
def published_servings() -> tuple[ServingBoard, ...]:
    """The serving boards of the published sessions, the newest version and then the front page's target first."""
    return tuple(
        sorted(_marked()[1], key=lambda board: (board.key.archived, board.key.target != FRONT_TARGET))
    )


@cache
def _marked() -> tuple[tuple[Board, ...], tuple[ServingBoard, ...]]:
    return mark_earlier(
        build_boards(load_results(None, ROOT / "leaderboard" / "results")),
        build_serving_boards(SERVING_FILES.read_all(ROOT / "leaderboard" / "serving")),
    )


def _order(board: Board) -> tuple[tuple[int, ...], int, float, str]:
    newest = board.newest
    return (
        tuple(-number for number in _minor(board.key.draftrank_version)),
        -newest.prompts,
        -(newest.baseline_tokens_per_second or 0.0),
        board.key.id,
    )


def _minor(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


def front_board() -> Board:
    """The board of the front page: of its target's boards on a CPU in the newest version, the one that ranks the most
    drafts; the best of equals by the order of `published`."""
    boards = [board for board in published() if (board.key.target, board.key.device) == (FRONT_TARGET, "cpu")]
    newest = [board for board in boards if board.key.draftrank_version == boards[0].key.draftrank_version]
    return max(newest, key=lambda board: sum(row.rank is not None for row in board.rows))


def machines() -> list[tuple[str, str]]:
    """Target and machine class of all published boards, in alphabetical order, the front page's target first."""
    found = {(board.key.target, board.key.machine_class) for board in published()}
    return sorted(found, key=lambda one: (one[0] != FRONT_TARGET, one))


def of_machine(target: str, machine_class: str) -> list[Board]:
    """The boards of a target on a machine class, best first."""
    return [
        board
        for board in published()
        if (board.key.target, board.key.machine_class) == (target, machine_class)
    ]


def with_results(page: str) -> str:
    """The page with every section between markers as the published bundles are now."""
    return SECTION.sub(
        lambda match: match[1] + section(match["kind"], match["names"].split()) + match[4], page
    )


def section(kind: str, names: Sequence[str]) -> str:
    """One section: the front page's board, the leading drafts, all serving boards, or all boards of a target and machine
    class."""
    if kind == "board":
        return front()
    if kind == "leaders":
        return leaders()
    if kind == "servings":
        return servings()
    target, machine_class = names
    boards = of_machine(target, machine_class)
    return "\n".join([plain_decoding(boards), *map(whole, boards)])


def front() -> str:
    """The first rows of the front page's board, below a sentence that says where and how they were measured."""
    board, newest = front_board(), front_board().newest
    ranked = [row for row in board.rows if row.rank is not None and not row.lossy][:FRONT_ROWS]
    return (
        f"`{board.key.target}` on `{board.key.machine_class}`, {board.key.backend_and_dtype}, {newest.prompts} "
        f"prompts of\n{len(board.tasks)} tasks, one request at a time. Plain decoding gives "
        f"{decimal(newest.baseline_tokens_per_second, 1)} tokens/s. {_version(board.key)}, {day(newest.measured_at)}."
        + several_sessions(ranked, newest.id)
        + "\n\n"
        + table(
            ("rank", "draft", "speedup (95 %)", "accept", "tokens/s", "output"),
            (
                (
                    rank(row.rank),
                    f"`{row.draft}`",
                    _speedup(row),
                    decimal(row.acceptance_length),
                    decimal(row.tokens_per_second, 1),
                    row.fidelity.status,
                )
                for row in ranked
            ),
        )
    )


def leaders() -> str:
    """For every target and machine class the fastest lossless draft of its best board, with plain decoding in its session."""
    rows = []
    for target, machine_class in machines():
        boards = of_machine(target, machine_class)
        board = next((board for board in boards if board.fastest), boards[0])
        first = board.fastest
        plain = {session.id: session.baseline_tokens_per_second for session in board.sessions}
        own = first.session if first else board.newest.id
        rows.append(
            (
                f"`{target}`",
                f"`{machine_class}`",
                board.key.backend_and_dtype,
                decimal(plain[own], 1),
                f"`{first.draft}`" if first else "none is ranked",
                _speedup(first),
                decimal(first.tokens_per_second if first else None, 1),
                board.key.draftrank_version,
            )
        )
    names = (
        "target",
        "machine class",
        "backend",
        "plain tokens/s",
        "leading lossless draft",
        "speedup (95 %)",
    )
    return table((*names, "tokens/s", "version"), rows)


def plain_decoding(boards: Iterable[Board]) -> str:
    """What the baseline gives in every backend that was measured."""
    return table(
        ("plain decoding", "tokens/s", "suite", "measured", "version"),
        (
            (
                board.key.backend_and_dtype,
                decimal(board.newest.baseline_tokens_per_second, 1),
                board.key.suite,
                day(board.newest.measured_at),
                board.key.draftrank_version,
            )
            for board in boards
        ),
    )


def whole(board: Board) -> str:
    """One board with all its rows."""
    newest, key = board.newest, board.key
    noise = newest.noise
    apart = (
        f"{times(noise.value)} ({span((noise.interval.low, noise.interval.high)) if noise.interval else '–'})"
        if noise
        else "unknown"
    )
    head = f"**{key.backend_and_dtype}, suite `{key.suite}`, {key.mode}.** {_version(key)}, {day(newest.measured_at)}. "
    head += f"Baseline {decimal(newest.baseline_tokens_per_second, 1)} tokens/s, A/A {apart}, {newest.prompts} prompts."
    head += several_sessions(board.rows, newest.id) + "\n\n"
    names = ("rank", "draft", "k", "speedup (95 %)", "slowest task", "fastest task", "accept", "cost")
    lines = table((*names, "tokens/s", "output"), map(_cells, board.rows))
    reasons = ((row.draft, str(row.reason)) for row in board.rows if not row.ranked)
    return head + lines + notes_below(board.rows, reasons)


def several_sessions(rows: Iterable[BoardRow | ServedRow], newest: str, plain: str = "baseline") -> str:
    """What a head leaves out that names plain decoding of the newest session, by its id: other rows have another one."""
    sessions = {newest, *(row.session for row in rows)}
    if len(sessions) == 1:
        return ""
    return f" Rows come from {len(sessions)} sessions, each with a {plain} of its own; that of the newest is named."


def notes_below(rows: Sequence[BoardRow | ServedRow], not_ranked: Iterable[tuple[str, str]]) -> str:
    """A list below a board: why drafts are not ranked, each reason once with the drafts that it holds for, and which were
    measured with an earlier recipe."""
    drafts: dict[str, list[str]] = {}
    for draft, reason in not_ranked:
        drafts.setdefault(reason, []).append(f"`{draft}`")
    lines = [f"- Not ranked: {', '.join(found)}: {reason}.\n" for reason, found in drafts.items()]
    earlier = [f"`{row.draft}`" for row in rows if row.earlier_recipe]
    lines += [f"- Earlier recipe: {', '.join(earlier)}, {EARLIER}.\n"] if earlier else []
    return "\n" + "".join(lines) if lines else ""


def servings() -> str:
    """Every serving board, by target and machine class."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for board in published_servings():
        grouped.setdefault((board.key.target, board.key.machine_class), []).append(server(board))
    return (
        "\n".join(
            f"### `{target}` on `{machine_class}`\n\n" + "\n".join(boards)
            for (target, machine_class), boards in grouped.items()
        )
        or "No serving session is published.\n"
    )


def server(board: ServingBoard) -> str:
    """One serving board: the plain server, and each draft with a column for each concurrency."""
    newest, key = board.newest, board.key
    load = f", {key.rate:g} requests/s" if key.rate is not None else ""
    head = (
        f"**{key.engine_and_dtype}, server `{key.server}`, suite `{key.suite}`{load}.** {_version(key)}, "
        f"{day(newest.measured_at)}. {len(newest.record.turns)} prompt turns, {newest.record.rounds} rounds. Speedup by "
        f"requests in flight.{several_sessions(board.rows, newest.record.id, 'plain server')}\n\n"
    )
    throughput: list[str] = []
    noise: list[str] = []
    for at in board.concurrencies:
        plain, found = newest.plain.get(at), newest.noise.get(at)
        throughput.append(decimal(plain.throughput if plain else None, 1))
        noise.append(span((found.interval.low, found.interval.high) if found and found.interval else None))
    rows = [
        ("plain server, tokens/s", *throughput, "", "1.00"),
        ("plain server, A/A", *noise, "", ""),
        *(_served(board, row) for row in board.rows),
    ]
    lines = table(("draft", *map(str, board.concurrencies), "switch-off", "accept"), rows)
    return (
        head
        + lines
        + notes_below(board.rows, ((row.draft, reason) for row in board.rows for reason in row.reasons))
    )


def _served(board: ServingBoard, row: ServedRow) -> tuple[str, ...]:
    cells = []
    for at in board.concurrencies:
        found = row.best.get(at)
        if found is None or not found.ranked:
            cells.append("–" if found is None else "not ranked")
        else:
            k = f", k={found.k}" if len(row.arms) > 1 else ""
            cells.append(f"{times(found.speedup)} ({span(found.ci)}){k}")
    first = next(iter(row.best.values()))
    return (f"`{row.draft}`", *cells, row.switch_off.words, decimal(first.acceptance_length))


def _cells(row: BoardRow) -> tuple[str, ...]:
    tasks = sorted((cell.speedup, name) for name, cell in row.per_task.items() if cell.speedup is not None)
    return (
        rank(row.rank) + (" lossy" if row.lossy and row.rank else ""),
        f"`{row.draft}`",
        str(row.k),
        _speedup(row),
        *(f"{times(speedup)} {name}" for speedup, name in (tasks[:1] + tasks[-1:] if tasks else [])),
        *(["–", "–"] if not tasks else []),
        decimal(row.acceptance_length),
        decimal(row.draft_cost),
        decimal(row.tokens_per_second, 1),
        row.fidelity.status,
    )


def _speedup(row: BoardRow | None) -> str:
    return f"{times(row.speedup)} ({span(row.ci)})" if row else "–"


def _version(key: BoardKey | ServingKey) -> str:
    return f"Version {key.draftrank_version}" + (" (archived)" if key.archived else "")


def table(names: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns are as wide as their widest cell."""
    lines = [tuple(names), *map(tuple, cells)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    ruled = [lines[0], tuple("-" * width for width in widths), *lines[1:]]
    return "".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |\n"
        for line in ruled
    )


def main() -> int:
    """Writes what is not current; names it."""
    for path in (README, RESULTS):
        page = path.read_text("utf-8")
        if with_results(page) != page:
            path.write_text(with_results(page), "utf-8")
            print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
