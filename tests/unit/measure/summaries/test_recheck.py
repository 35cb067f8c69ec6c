"""A published result against its re-run, on records with known figures."""

from __future__ import annotations

import re

import pytest

from builders import result
from draftrank.measure.summaries.recheck import check_acceptance, check_outputs, check_speed, pair_up


def published(speedup=1.5, **changes):
    return result({"ngram": speedup}, **changes)


def of_draft(before, now):
    return [pair for pair in pair_up(before, now) if pair.published.arm == "ngram"]


@pytest.mark.parametrize(
    ("before", "now", "status"),
    [(1.5, 1.5, "holds"), (1.5, 1.52, "holds"), (15.0, 1.5, "fails"), (1.5, 15.0, "fails")],
)
def test_speedups_contradict_each_other_when_their_intervals_do(before, now, status):
    check = check_speed(published(before), published(now), "ngram", same_weights=True)
    assert check.status == status
    assert ("exclude each other" in check.detail) == (status == "fails")


def test_ends_of_intervals_next_to_1_are_told_as_the_board_tells_them():
    """Whether an interval holds 1 is what a reader looks for: none of these ends is 1, and none is shown as 1.00."""
    ends = []
    for thousandths in range(970, 1031, 3):
        check = check_speed(published(thousandths / 1000), published(), "ngram", same_weights=True)
        ends += [end for pair in re.findall(r"\(([\d.]+)–([\d.]+)\)", check.detail) for end in pair]
    assert len(ends) == 4 * 21
    assert "1.00" not in ends
    assert any(len(end) > len("1.00") for end in ends)


def test_a_noisy_session_contradicts_less():
    before, now = published(1.5), published(1.8)
    assert check_speed(before, now, "ngram", same_weights=True).status == "fails"
    noisy = published(1.8, control=0.7)
    assert check_speed(before, noisy, "ngram", same_weights=True).status == "holds"


def test_one_prompt_or_no_control_gives_no_interval():
    one = published(tasks={"chat": 1})
    assert check_speed(one, one, "ngram", same_weights=True).status == "skipped"
    bare = published(drop=lambda trial: trial.arm == "baseline-control")
    assert check_speed(published(), bare, "ngram", same_weights=True).status == "skipped"


def test_histograms_are_equal_in_fp32_and_alike_in_bf16():
    before = published(histogram=(2, 0, 0, 30))
    alike, other = published(histogram=(3, 0, 1, 29)), published(histogram=(38, 2, 0, 1))
    assert check_acceptance(of_draft(before, before), "fp32", same_weights=True).status == "holds"
    pairs = [
        type(pair)(pair.published, pair.again.model_copy(update={"token_ids": pair.published.token_ids}))
        for now in (alike, other)
        for pair in of_draft(before, now)
    ]
    half = len(pairs) // 2
    assert check_acceptance(pairs[:half], "fp32", same_weights=True).status == "fails"
    assert check_acceptance(pairs[:half], "bf16", same_weights=True).status == "holds"
    assert check_acceptance(pairs[half:], "bf16", same_weights=True).status == "fails"


def test_a_draft_trained_anew_may_accept_a_little_less_but_not_half():
    before = published(histogram=(2, 0, 0, 10))
    for histogram, status in (((3, 0, 0, 10), "holds"), ((20, 0, 0, 1), "fails")):
        check = check_acceptance(of_draft(before, published(histogram=histogram)), "fp32", same_weights=False)
        assert check.status == status


def test_differences_are_what_the_judge_says():
    before, now = published(), published(change=lambda one: one.model_copy(update={"token_ids": (7,) * 9}))
    pairs = pair_up(before, now)
    assert pairs
    for judged, status in (("tie", "holds"), ("break", "fails"), ("unjudged", "skipped")):
        assert check_outputs(pairs, lambda *_, told=judged: told).status == status
    assert check_outputs([], lambda *_: "break").status == "fails"


def test_a_later_turn_counts_only_after_the_same_answer():
    def with_turns(token):
        def second(one):
            return one.model_copy(update={"turn": 1})

        whole = published(repeats=1)
        first = tuple(one.model_copy(update={"token_ids": (token,) * 9}) for one in whole.trials)
        return whole.model_copy(update={"trials": (*first, *map(second, whole.trials))})

    assert {pair.published.turn for pair in pair_up(with_turns(7), with_turns(7))} == {0, 1}
    assert {pair.published.turn for pair in pair_up(with_turns(7), with_turns(8))} == {0}
