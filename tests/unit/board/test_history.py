"""Records and frontiers: what counts as better, and what only looks so."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from builders import arm_of, result
from draftrank.board.history import speed_records
from draftrank.board.ranking import build_boards
from draftrank.board.serving import frontier


def on_day(day, speedups, **changes):
    at = f"2026-11-{day:02}T10:00:00Z"
    return result(
        speedups, id=f"202611{day:02}-x", created_at=at, finished_at=at.replace("10:", "11:"), **changes
    )


def records(*sessions):
    (board,) = build_boards(sessions)
    return [record.row.draft for record in speed_records(board.results)]


def test_the_first_ranked_result_sets_the_record_and_faster_ones_break_it():
    assert records(on_day(1, {"a": 1.2}), on_day(2, {"b": 1.5}), on_day(3, {"c": 1.4})) == ["a", "b"]


def test_a_draft_that_is_no_longer_shown_keeps_its_place_in_the_history():
    # The newest recipe's result stands for a draft; the record that an earlier session set remains.
    assert records(on_day(1, {"a": 1.8}), on_day(2, {"a": 1.2}), on_day(3, {"b": 1.5})) == ["a"]


def test_what_may_be_noise_is_no_record():
    assert records(on_day(1, {"a": 1.5}), on_day(2, {"b": 1.502})) == ["a"]


def test_only_the_fastest_of_a_session_counts():
    assert records(on_day(1, {"a": 1.2, "b": 1.9, "c": 1.5})) == ["b"]


def test_lossy_and_unranked_results_set_no_record():
    lossy = on_day(2, {"loose": 2.5}, arms=[arm_of("loose", lossy=True)])
    incomplete = on_day(3, {"b": 2.5}, drop=lambda one: one.arm == "b" and one.prompt == "p0")
    assert records(on_day(1, {"a": 1.2}), lossy, incomplete) == ["a"]


def test_no_results_no_records():
    assert speed_records([]) == ()


points = st.lists(st.tuples(st.floats(0, 3), st.floats(0, 3)), max_size=12)


@given(points)
def test_the_frontier_holds_exactly_what_nothing_beats(found):
    def beaten(one):
        return any(other != one and other[0] <= one[0] and other[1] >= one[1] for other in found)

    items = [(index, *point) for index, point in enumerate(found)]
    assert sorted(frontier(items)) == [index for index, point in enumerate(found) if not beaten(point)]


def test_the_frontier_runs_by_rising_cost():
    assert frontier([("dear", 2.0, 3.0), ("cheap", 0.5, 1.0), ("worse", 1.0, 0.9)]) == ["cheap", "dear"]
