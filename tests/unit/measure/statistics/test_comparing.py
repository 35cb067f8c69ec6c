"""Two arms of one session against each other."""

from __future__ import annotations

import pytest

from builders import result
from draftrank import compare
from draftrank.errors import InvalidInputError

OLD = result({"a": 2.0, "b": 1.0, "twin": 2.0})
NEW = result({"a": 1.2, "c": 1.0}, id="20261105-n", created_at="2026-11-05T10:00:00Z", target="other")


def test_the_ratio_is_that_of_speeds_and_says_which_arm_is_faster():
    found = compare([OLD], "a", "b")
    assert found.overall.value == pytest.approx(2.0, rel=0.03)
    assert found.overall.answer == "faster"
    assert found.overall.probability > 0.999
    assert list(found.tasks) == ["chat", "math"]
    assert found.cells == 16
    other = compare([OLD], "b", "a")
    assert other.overall.value == pytest.approx(1 / found.overall.value)
    assert other.overall.answer == "slower"
    assert other.overall.probability == pytest.approx(1 - found.overall.probability)


def test_equal_arms_cannot_be_told_apart():
    found = compare([OLD], "a", "twin")
    assert found.overall.answer == "can't tell"
    assert found.overall.interval.contains(1.0)
    assert 0.01 < found.overall.probability < 0.99


def test_without_an_interval_nothing_can_be_told():
    found = compare([result({"a": 2.0}, tasks={"chat": 1})], "a", "baseline")
    assert (found.overall.interval, found.overall.probability) == (None, None)
    assert found.overall.answer == "can't tell"


def test_the_newest_session_with_both_counts_unless_one_is_named():
    assert compare([OLD, NEW], "a", "baseline").session.id == NEW.session.id
    assert compare([OLD, NEW], "a", "b").session.id == OLD.session.id
    assert compare([OLD, NEW], "a", "baseline", target="tiny-target").session.id == OLD.session.id
    assert compare([OLD, NEW], "a", "baseline", session=OLD.session.id).session.id == OLD.session.id


def test_a_disturbed_attempt_does_not_count():
    again = [
        one.model_copy(update={"attempt": 1, "decode_s": one.decode_s / 9})
        for one in OLD.trials
        if one.arm == "a"
    ]
    calm = [one.model_copy(update={"attempt": 1}) for one in OLD.trials if one.arm != "a"]
    found = compare([OLD.model_copy(update={"trials": (*OLD.trials, *again, *calm)})], "a", "b")
    assert found.overall.value == pytest.approx(18.0, rel=0.05)


@pytest.mark.parametrize(
    ("first", "second", "session", "problem"),
    [
        ("a", "a", None, "compared with itself"),
        ("a", "nothing", None, "no result of 'nothing'.*known: a, b"),
        ("b", "c", None, "no session measured both 'b' and 'c'.*measure them together"),
        ("a", "b", "20261105-n", "no result of 'b' in session"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_a_way_out(first, second, session, problem):
    with pytest.raises(InvalidInputError, match=problem):
        compare([OLD, NEW], first, second, session=session)


def test_without_any_result_it_says_what_to_do():
    with pytest.raises(InvalidInputError, match="draftrank run"):
        compare([], "a", "b")
