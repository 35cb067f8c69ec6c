"""What pages and messages call a board."""

from __future__ import annotations

from draftrank.board.rows import BoardKey


def place_of(key: BoardKey) -> str:
    """A board in a few words, without its target; an archived one says so."""
    words = f"{key.suite}, {key.backend_and_dtype}, {key.mode}, {key.machine_class}"
    return f"{words} (archived, draftrank {key.draftrank_version})" if key.archived else words


def title_of(key: BoardKey) -> str:
    """A board in a few words."""
    return f"{key.target}: {place_of(key)}"
