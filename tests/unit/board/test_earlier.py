"""Rows of a recipe that has changed since: marked wherever the draft was not measured again."""

from __future__ import annotations

import pytest

from builders import MACHINE, arm_of, build, result, sha
from draftrank.board.earlier import mark_earlier
from draftrank.board.ranking import build_boards
from draftrank.board.serving_ranking import build_serving_boards
from servings import a_serving, an_arm

OTHER = MACHINE.model_copy(update={"machine_class": "cpu-8core"})


def measured(recipe: str, day: int, **changes):
    """The draft `a` of a recipe, and `b`, which never changes."""
    arms = [arm_of("a", draft=build("a", recipe_sha256=sha(recipe))), arm_of("b")]
    stamp = f"2026-12-{day:02}T11:00:00Z"
    named = {"id": f"202612{day:02}-{recipe}", "finished_at": stamp, **changes}
    return result({"a": 2.0, "b": 1.5}, arms=arms, created_at=stamp, **named)


def served(recipe: str, day: int, seed: int = 0, **changes):
    arms = {"a": an_arm("a", draft=build("a", recipe_sha256=sha(recipe)))}
    values = {"id": f"2026-12-{day:02}-s", "finished_at": f"2026-12-{day:02}T12:00:00Z", **changes}
    return a_serving({"a": 1.2}, arms=arms, rounds=values.pop("rounds", 6), seed=seed, **values)


def earlier(results, servings=()):
    """Marked rows, by machine class or server and draft."""
    boards, served_boards = mark_earlier(build_boards(results), build_serving_boards(servings))
    rows = [(board.key.machine_class, row) for board in boards for row in board.rows]
    rows += [(board.key.server, row) for board in served_boards for row in board.rows]
    return {(place, row.draft) for place, row in rows if row.earlier_recipe}


def test_a_row_is_earlier_where_another_machine_has_a_newer_recipe():
    old, new = measured("old", 1), measured("new", 3, machine=OTHER)
    assert earlier([old, new]) == {("cpu-2core", "a")}
    assert earlier([old, measured("old", 3, machine=OTHER)]) == set()
    again = measured("new", 5)
    assert earlier([old, new, again]) == set()


def test_servers_and_this_engine_tell_of_each_other():
    old, new = served("old", 1), measured("new", 3)
    (server,) = {board.key.server for board in build_serving_boards([old])}
    assert earlier([new], [old]) == {(server, "a")}
    assert earlier([measured("old", 1)], [served("new", 3)]) == {("cpu-2core", "a")}


def test_archived_boards_tell_nothing():
    old = measured("old", 1, draftrank_version="0.1.0")
    newer = measured("new", 3, draftrank_version="0.1.0", machine=OTHER)
    assert earlier([old, newer, measured("now", 2)]) == set()


def test_a_failed_build_names_no_recipe():
    failed = measured("x", 9, machine=OTHER).model_copy(
        update={"session": result({"a": 2.0}, arms=[arm_of("a", draft=None, failure="no")]).session}
    )
    assert earlier([measured("old", 1), failed]) == set()


def test_a_newer_recipe_in_a_server_is_not_hidden_by_a_ranked_result_of_the_older_one():
    """Its session is too short to rank."""
    (board,) = build_serving_boards([served("old", 1), served("new", 3, 1, rounds=2)])
    assert board.rows[0].recipe_sha256 == sha("new")
    assert not board.rows[0].ranked
    (board,) = build_serving_boards([served("old", 1), served("old", 3, 1, rounds=2)])
    assert board.rows[0].ranked
    assert board.rows[0].best[1].speedup == pytest.approx(1.2, rel=0.05)
