"""Which boards lead: those of the running minor version before archived ones, this machine's class before others, and
at each place the fastest backend before slower ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from draftrank.board.reproduce import explores
from draftrank.board.rows import Board, BoardKey


@dataclass(frozen=True, slots=True)
class Place:
    """One target on one machine class, as one minor version measured it."""

    backends: tuple[tuple[Board, ...], ...]
    """The boards of each backend and dtype, of each the board that tells most first. The backend whose first board has
    the fastest plain decoding leads. Never empty."""

    @property
    def lead(self) -> Board:
        """The board that answers for this place."""
        return self.backends[0][0]


def _nowhere(_: str) -> bool:
    return False


def in_order(boards: Sequence[Board], is_here: Callable[[str], bool] = _nowhere) -> tuple[Board, ...]:
    """All boards, leading ones first; their order in `boards` does not matter. `is_here` tells whether a machine class
    is this machine's."""
    return tuple(
        board for place in places_of(boards, is_here) for backend in place.backends for board in backend
    )


def places_of(boards: Sequence[Board], is_here: Callable[[str], bool] = _nowhere) -> tuple[Place, ...]:
    """The places that these boards speak of, leading ones first; see `in_order`."""
    versions = sorted({version_of(board.key) for board in boards}, reverse=True)
    grouped: dict[tuple[str, ...], list[Board]] = {}
    for board in boards:
        key = board.key
        where = (key.draftrank_version, key.target, key.target_weights_sha256, key.machine_class)
        grouped.setdefault(where, []).append(board)
    places = [_place(own) for own in grouped.values()]

    def leading(place: Place) -> tuple[object, ...]:
        key = place.lead.key
        return (
            key.archived,
            versions.index(version_of(key)),
            not is_here(key.machine_class),
            key.target,
            -_plain(place.lead),
            key.machine_class,
            key.id,
        )

    return tuple(sorted(places, key=leading))


def version_of(key: BoardKey) -> tuple[int, ...]:
    """Its version as numbers; () of one that is not made of numbers."""
    parts = key.draftrank_version.split(".")
    return tuple(int(part) for part in parts) if all(part.isdecimal() for part in parts) else ()


def weight(board: Board) -> tuple[bool, bool, int, int, str, str]:
    """What makes one board of a backend tell more than another: declared drafts, greedy decoding, its prompts, its ranked
    drafts, its date."""
    ranked = sum(row.rank is not None for row in board.rows)
    newest = board.newest
    declared = not explores(board.key.suite)
    return declared, board.key.mode == "greedy", newest.prompts, ranked, newest.measured_at, board.key.id


def _place(boards: Sequence[Board]) -> Place:
    grouped: dict[tuple[str, str], list[Board]] = {}
    for board in sorted(boards, key=weight, reverse=True):
        grouped.setdefault((board.key.device, board.key.backend_and_dtype), []).append(board)
    backends = sorted(grouped.items(), key=lambda entry: (-_plain(entry[1][0]), entry[0]))
    return Place(tuple(tuple(own) for _, own in backends))


def _plain(board: Board) -> float:
    """Plain decoding, in tokens per second; 0 where it is unknown."""
    return board.newest.baseline_tokens_per_second or 0.0
