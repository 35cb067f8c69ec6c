"""Who may be compared with whom, which session stands for a draft, and who ranks where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import MACHINE, arm_of, build, result, sha, slowed
from draftrank.board.ranking import build_boards
from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.version import __version__
from examples import examples


def test_rows_are_sorted_by_speedup_and_unranked_ones_come_last():
    (board,) = build_boards(
        [
            result(
                {"slow": 1.2, "fast": 2.0, "cheat": 3.0},
                arms=[
                    arm_of("slow"),
                    arm_of("cheat", k=1),
                    arm_of("fast"),
                    arm_of("dead", draft=None, failure="no"),
                ],
            )
        ]
    )
    assert [(row.draft, row.rank) for row in board.rows] == [
        ("fast", (1, 1)),
        ("slow", (2, 2)),
        ("cheat", None),
        ("dead", None),
    ]
    assert "acceptance length" in board.rows[2].reason
    assert board.rows[3].reason == "failed: no"
    assert board.newest.baseline_tokens_per_second == pytest.approx(10.0, rel=0.03)
    assert board.newest.noise.interval.contains(1.0)


POOL = [
    result({"a": 2.0, "b": 1.5}, id="20261101-a"),
    result({"a": 1.9, "c": 1.5}, id="20261103-c", created_at="2026-11-03T10:00:00Z"),
    result({"b": 1.2}, id="20261102-b", control=1.5, created_at="2026-11-02T10:00:00Z"),
    result({"a": 1.4}, id="20261102-x", dtype="bf16"),
    result({"b": 1.2}, id="20261102-b", tasks={"chat": 2}, created_at="2026-11-02T10:00:00Z"),
]


@given(st.permutations(POOL))
@examples(15)
def test_the_order_of_sessions_changes_nothing(results):
    assert build_boards(results) == build_boards(POOL)


@pytest.mark.parametrize(
    "changes",
    [
        {"target": "other"},
        {"target_weights_sha256": sha("other")},
        {"machine": MACHINE.model_copy(update={"machine_class": "cpu-64core"})},
        {"dtype": "bf16"},
        {"device": "cuda"},
        {"mode": DecodingMode(temperature=0.7)},
        {"suite": "full"},
        {"suite_sha256": sha("other")},
        {"draftrank_version": "0.2.0"},
    ],
)
def test_ranks_never_cross_what_must_be_equal(changes):
    boards = build_boards([result({"a": 2.0}), result({"b": 1.5}, id="20261102-b", **changes)])
    assert [len(board.rows) for board in boards] == [1, 1]
    assert len({board.key.id for board in boards}) == 2


def test_a_patch_version_or_another_seed_stays_on_the_board():
    patched = result({"b": 1.5}, id="20261102-b", draftrank_version=f"{__version__}7", seed=4)
    (board,) = build_boards([result({"a": 2.0}), patched])
    assert [(row.draft, row.session) for row in board.rows] == [("a", "20261101-a"), ("b", "20261102-b")]
    assert len(board.sessions) == 2


def test_rows_that_cannot_be_told_apart_share_a_range_and_say_how_sure_the_rest_is():
    (board,) = build_boards([result({"a": 2.0, "twin": 2.0, "slow": 1.2})])
    ranks = {row.draft: row.rank for row in board.rows}
    assert ranks == {"a": (1, 2), "twin": (1, 2), "slow": (3, 3)}
    slow = board.rows[-1]
    assert set(slow.ahead) == {"a", "twin"}
    assert max(slow.ahead.values()) < 0.01


@given(
    st.lists(st.floats(0.5, 3.0), min_size=2, max_size=6),
    st.lists(st.floats(0.3, 3.0), min_size=6, max_size=6),
)
@examples(40)
def test_rows_stand_by_their_range_of_ranks(speeds, gains):
    """Drafts that gain unequally from prompt to prompt have wide intervals, so that the faster may be the less certain."""
    names = {f"d{index}": speed for index, speed in enumerate(speeds)}

    def gain(name, task):
        return gains[int(name[1:])] if name in names and task == "math" else 1.0

    def uneven(one):
        return 1.0 + (int(one.arm[1:]) * 0.2 if one.arm in names and one.prompt == "p1" else 0.0)

    (board,) = build_boards([slowed(result(names, gain=gain), uneven)])
    ranked = [row for row in board.rows if row.rank]
    order = [(row.rank, -row.speedup) for row in ranked]
    assert order == sorted(order)


def test_a_certain_draft_stands_before_a_faster_one_that_is_not():
    """`wild` is the fastest, but so unevenly that it may be third; `calm` cannot be."""

    def uneven(one):
        return 1.0 if one.arm != "wild" else 0.5 if one.prompt == "p0" else 1.2

    (board,) = build_boards([slowed(result({"wild": 1.9, "calm": 1.8, "slow": 1.4}), uneven)])
    rows = {row.draft: row for row in board.rows}
    assert rows["wild"].speedup > rows["calm"].speedup
    assert [(row.draft, row.rank) for row in board.rows] == [
        ("calm", (1, 2)),
        ("wild", (1, 3)),
        ("slow", (2, 3)),
    ]
    assert board.fastest.draft == "calm"


def test_rows_of_different_sessions_are_compared_by_their_speedups():
    (board,) = build_boards([result({"a": 2.0}), result({"b": 1.2}, id="20261102-b")])
    assert [(row.draft, row.rank) for row in board.rows] == [("a", (1, 1)), ("b", (2, 2))]
    assert board.rows[0].ahead["b"] > 0.99


def newer(speedup=1.5, **changes):
    return result({"a": speedup}, id="20261105-n", created_at="2026-11-05T10:00:00Z", **changes)


def chosen(*results):
    (board,) = build_boards(results)
    (row,) = board.rows
    return row.session


def test_the_newest_session_stands_for_a_draft():
    assert chosen(result({"a": 2.0}), newer()) == "20261105-n"


def test_a_complete_session_goes_before_a_newer_incomplete_one():
    incomplete = newer(drop=lambda one: one.prompt == "p0")
    assert chosen(result({"a": 2.0}), incomplete) == "20261101-a"
    assert chosen(incomplete) == "20261105-n"


def test_a_steady_session_goes_before_a_newer_noisy_one():
    assert chosen(result({"a": 2.0}), newer(control=1.4)) == "20261101-a"


def test_a_fault_of_the_draft_is_not_hidden_by_an_older_result():
    assert chosen(result({"a": 2.0}), newer(histogram=(8,))) == "20261105-n"


def test_a_newer_recipe_replaces_a_complete_result_of_the_older_one():
    changed = [arm_of("a", draft=build("a", recipe_sha256=sha("new recipe")))]
    assert (
        chosen(result({"a": 2.0}), newer(arms=changed, drop=lambda one: one.prompt == "p0")) == "20261105-n"
    )


def test_a_failed_build_does_not_replace_a_result():
    failed = newer(arms=[arm_of("a", draft=None, failure="no")], drop=lambda one: one.arm == "a")
    assert chosen(result({"a": 2.0}), failed) == "20261101-a"


def test_of_two_states_of_one_session_the_fuller_counts():
    started = result({"a": 2.0}, drop=lambda one: one.repeat == 1, finished_at=None)
    (board,) = build_boards([started, result({"a": 2.0})])
    assert board.rows[0].ranked


def test_a_session_over_other_tasks_is_another_board():
    boards = build_boards([result({"a": 2.0}), result({"b": 4.0}, id="20261102-b", tasks={"chat": 4})])
    assert sorted((board.tasks, [row.draft for row in board.rows]) for board in boards) == [
        (("chat",), ["b"]),
        (("chat", "math"), ["a"]),
    ]


def test_a_session_of_the_baseline_alone_is_a_board_without_rows():
    (board,) = build_boards([result({})])
    assert board.rows == ()
    assert board.newest.id == "20261101-a"


def test_a_row_carries_what_is_shown():
    (board,) = build_boards([result({"a": 2.0})])
    (row,) = board.rows
    assert row.title == "The draft a"
    assert row.acceptance_length == 4.0
    assert row.acceptance_rate == 1.0
    assert row.draft_cost == pytest.approx(0.1)
    assert row.fidelity.status == "identical"
    assert list(row.per_task) == ["chat", "math"]
    assert row.per_task["math"].ci[0] <= row.per_task["math"].speedup <= row.per_task["math"].ci[1]
    assert (row.k, row.trained, row.parameters, row.techniques) == (3, False, 0, ("n-gram",))
    assert row.recipe_sha256 == sha("recipe a")
    assert row.measured_at == "2026-11-01T11:00:00Z"


def test_lossy_drafts_are_ranked_among_themselves():
    arms = [arm_of("exact"), arm_of("loose", lossy=True), arm_of("looser", lossy=True)]
    (board,) = build_boards([result({"exact": 1.5, "loose": 2.0, "looser": 3.0}, arms=arms)])
    assert [(row.draft, row.rank) for row in board.rows] == [
        ("exact", (1, 1)),
        ("looser", (1, 1)),
        ("loose", (2, 2)),
    ]
