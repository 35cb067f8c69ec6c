"""Rows that were measured before the recipe of their draft changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from draftrank.board.rows import Board
from draftrank.board.serving import ServingBoard

EARLIER = "measured before its recipe changed: a newer result of this draft has another recipe"
"""What a reader should know of such a row."""
AnyBoard = TypeVar("AnyBoard", Board, ServingBoard)


def mark_earlier(
    boards: Sequence[Board], servings: Sequence[ServingBoard]
) -> tuple[tuple[Board, ...], tuple[ServingBoard, ...]]:
    """The same boards, with `earlier_recipe` set in every row whose draft has a newer result with another recipe.

    Within one board only results with the newest recipe count, but a draft may have been measured again in one engine or
    on one machine only. Archived boards say nothing of this and stay as they are.
    """
    newest: dict[tuple[str, str], tuple[str, str]] = {}
    every: list[Board | ServingBoard] = [*boards, *servings]
    for board in every:
        for row in () if board.key.archived else board.rows:
            draft = board.key.target, row.draft
            if row.recipe_sha256 is not None:
                newest[draft] = max(newest.get(draft, ("", "")), (row.measured_at, row.recipe_sha256))
    recipes = {draft: recipe for draft, (_, recipe) in newest.items()}
    return (
        tuple(_marked(board, recipes) for board in boards),
        tuple(_marked(board, recipes) for board in servings),
    )


def _marked(board: AnyBoard, recipes: dict[tuple[str, str], str]) -> AnyBoard:
    if board.key.archived:
        return board
    rows = []
    for row in board.rows:
        recipe = recipes.get((board.key.target, row.draft))
        rows.append(replace(row, earlier_recipe=row.recipe_sha256 not in (None, recipe)))
    return replace(board, rows=tuple(rows))
