"""Who is surely ahead of whom, and which ranks cannot be excluded."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import trial
from draftrank.measure.statistics.estimates import Estimate, compare_speed
from draftrank.measure.statistics.log_ratio import LogRatio
from draftrank.measure.statistics.ranking_evidence import Contender, ratio_of, stand, stand_by, surely
from simulation.coverage import cover_ranks
from simulation.sessions import Scenario


def alone(name, value, error=0.01, freedom=10.0):
    """A contender in a session of its own."""
    log = LogRatio(math.log(value), error, freedom)
    return Contender(name, f"session of {name}", Estimate(value, None, log))


fields = st.lists(
    st.tuples(st.floats(0.2, 5.0), st.floats(0.001, 0.5), st.floats(1, 30)), min_size=1, max_size=8
).map(lambda rows: [alone(f"d{index}", *row) for index, row in enumerate(rows)])


@given(fields, st.randoms(use_true_random=False))
def test_the_order_of_contenders_changes_nothing(found, rng):
    assert stand(rng.sample(found, len(found))) == stand(found)


@given(fields)
def test_ranges_are_ranks_and_never_contradict_the_evidence(found):
    standings = stand(found)
    for one in found:
        low, high = standings[one.id].rank
        assert 1 <= low <= high <= len(found)
        for other in found:
            if one is other:
                continue
            assert standings[one.id].ahead[other.id] == pytest.approx(1 - standings[other.id].ahead[one.id])
            if standings[one.id].ahead[other.id] >= surely(len(found)):
                assert low < standings[other.id].rank[0]
                assert high < standings[other.id].rank[1]


@given(fields)
def test_the_true_order_by_value_is_never_excluded(found):
    by_value = sorted(found, key=lambda one: -one.speedup.value)
    standings = stand(found)
    for place, one in enumerate(by_value, 1):
        low, high = standings[one.id].rank
        assert low <= place <= high


def arms(speeds, spread):
    """Trials of arms on prompts that differ alike for all of them."""
    prompts = [("chat", f"p{index}", factor) for index, factor in enumerate(spread)]
    return {
        name: [
            trial(name, task=task, prompt=prompt, decode_s=factor * (1 + 0.004 * (index % 2)) / speed)
            for index, (task, prompt, factor) in enumerate(prompts)
        ]
        for name, speed in speeds.items()
    }


def contender(name, trials, session="s", as_if="baseline"):
    return Contender(name, session, compare_speed(trials[as_if], trials[name]).overall, lambda: trials[name])


def test_prompts_in_common_tell_apart_what_overlapping_intervals_do_not():
    trials = arms({"a": 2.0, "b": 1.8}, (1.0, 0.5, 1.6, 0.8))
    trials["baseline"] = [trial("baseline", prompt=f"p{index}") for index in range(4)]
    a, b = contender("a", trials), contender("b", trials)
    assert a.speedup.interval.low < b.speedup.interval.high
    assert {name: found.rank for name, found in stand([a, b]).items()} == {"a": (1, 1), "b": (2, 2)}
    apart = [contender("a", trials, "one"), contender("b", trials, "other")]
    assert [found.rank for found in stand(apart).values()] == [(1, 2), (1, 2)]


def test_identical_drafts_share_a_range():
    trials = arms({"a": 2.0, "twin": 2.0, "slow": 1.0, "baseline": 1.0}, (1.0, 0.5, 1.6))
    standings = stand(contender(name, trials) for name in ("a", "twin", "slow"))
    assert {name: found.rank for name, found in standings.items()} == {
        "a": (1, 2),
        "twin": (1, 2),
        "slow": (3, 3),
    }
    assert standings["a"].ahead["twin"] == 0.5


def test_what_is_surely_ahead_is_passed_on():
    # a is vague but surely ahead of b, and b of c; nothing else may then leave c beside a.
    ratios = {
        ("a", "b"): LogRatio(0.5, 0.1, 50),
        ("a", "c"): LogRatio(0.9, 0.6, 3),
        ("b", "c"): LogRatio(0.4, 0.01, 50),
    }
    standings = stand_by({"a": 2.0, "b": 1.3, "c": 0.9}, lambda one, other: ratios[one, other])
    assert [found.rank for found in standings.values()] == [(1, 1), (2, 2), (3, 3)]


def test_more_rows_ask_for_more_certainty():
    assert surely(1) == surely(2) == pytest.approx(0.975)
    assert surely(11) == pytest.approx(0.9975)
    assert stand([]) == {}


def test_a_result_without_an_interval_is_refused():
    with pytest.raises(ValueError, match="interval"):
        ratio_of(alone("a", 2.0), Contender("b", "other", Estimate(1.0, None)))


@pytest.mark.parametrize("drafts", [(1.6, 1.3, 1.25, 1.0), (1.2, 1.2, 1.2)])
def test_ranges_hold_the_true_rank(drafts):
    found = cover_ranks(Scenario((3, 3, 3, 2), drafts=drafts), sessions=150, seed=5)
    assert found.ranges.value >= 0.95


seconds = st.lists(st.floats(0.2, 5.0), min_size=24, max_size=24)


@given(seconds)
def test_the_quick_way_over_prompts_left_out_gives_what_the_trials_give(found):
    times = iter(found)
    trials = {
        name: [
            trial(name, task=task, prompt=f"p{index}", decode_s=next(times))
            for task in ("chat", "math")
            for index in range(3)
        ]
        for name in ("baseline", "a", "b", "c")
    }

    def quick(name):
        compared = compare_speed(trials["baseline"], trials[name])
        return Contender(name, "s", compared.overall, lambda: trials[name], "the same", compared.tasks)

    def slow(name):
        return replace(quick(name), cells=None)

    names = ("a", "b", "c")
    for one in names:
        for other in names:
            by_prompts, by_trials = ratio_of(quick(one), quick(other)), ratio_of(slow(one), slow(other))
            assert by_prompts.value == pytest.approx(by_trials.value, abs=1e-12)
            assert by_prompts.standard_error == pytest.approx(by_trials.standard_error, abs=1e-9)
    fast, known = stand(map(quick, names)), stand(map(slow, names))
    for name in names:
        assert fast[name].rank == known[name].rank
        assert dict(fast[name].ahead) == pytest.approx(dict(known[name].ahead), abs=1e-6)


def test_rows_of_different_prompts_are_compared_by_what_they_share():
    trials = arms({"a": 2.0, "b": 1.8, "baseline": 1.0}, (1.0, 0.5, 1.6, 0.8))
    short = trials["b"][:3]
    compared = compare_speed(trials["baseline"], trials["a"]), compare_speed(trials["baseline"], short)
    a = Contender("a", "s", compared[0].overall, lambda: trials["a"], "all", compared[0].tasks)
    b = Contender("b", "s", compared[1].overall, lambda: short, "some", compared[1].tasks)
    assert ratio_of(a, b) == compare_speed(short, trials["a"]).overall.log
    assert stand([a, b])["a"].ahead["b"] == pytest.approx(ratio_of(a, b).above_one)
