"""Token ids against the baseline's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import arm_of, session, trial
from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.measure.evidence import Divergence, Judgement, Numerics
from draftrank.measure.fidelity.divergence import (
    blind_share,
    compare_outputs,
    first_difference,
    judge_divergence,
)

FP32 = session([arm_of("d")], {"math": 4})
ROUNDING = Numerics(positions=500, forward_tokens=(4,), quantiles=(*(0.001 * i for i in range(100)), 0.25))
BF16 = FP32.model_copy(update={"dtype": "bf16", "numerics": ROUNDING})

ids = st.lists(st.integers(0, 3), max_size=6)


@given(ids, ids)
def test_the_first_difference_is_where_equal_heads_end(first, second):
    index = first_difference(first, second)
    if index is None:
        assert first == second
    else:
        assert first[:index] == second[:index]
        assert first[index : index + 1] != second[index : index + 1]


def test_differences_are_counted_and_placed():
    baseline = [trial("b", prompt=f"p{index}") for index in range(4)]
    same = [found.model_copy(update={"arm": "d"}) for found in baseline]
    late = same[2].model_copy(update={"token_ids": (*same[2].token_ids[:7], 9, 9)})
    early = same[3].model_copy(update={"token_ids": (*same[3].token_ids[:2], 9, *same[3].token_ids[3:])})
    found = compare_outputs(baseline, [same[0], same[1], late, early], FP32)
    assert (found.status, found.compared, found.differing) == ("breaks", 4, 2)
    assert found.exact_match == 0.5
    assert [(place.prompt, place.index) for place in found.divergences] == [("p2", 7), ("p3", 2)]
    assert found.earliest("break").prompt == "p3"
    assert found.agreement == (10 + 10 + 7 + 2) / 40 or found.agreement < 1


def test_an_output_that_stops_early_differs():
    baseline, shorter = trial("b", tokens=9), trial("d", tokens=5)
    assert compare_outputs([baseline], [shorter], FP32).divergences[0].index == 5


@pytest.mark.parametrize(
    ("mode", "arm"),
    [(DecodingMode(temperature=0.7), [trial("d")]), (DecodingMode(), [trial("d", prompt="other")])],
)
def test_nothing_to_compare(mode, arm):
    found = compare_outputs([trial("b")], arm, FP32.model_copy(update={"mode": mode}))
    assert (found.status, found.compared, found.exact_match, found.agreement) == (
        "not compared",
        0,
        None,
        None,
    )


def test_equal_outputs_are_identical():
    found = compare_outputs([trial("b")], [trial("d")], FP32)
    assert (found.status, found.exact_match, found.divergences) == ("identical", 1.0, ())


def differing(gap, baseline_gap=0.0):
    baseline = trial("b")
    found = Divergence(index=2, gap=gap, baseline_gap=baseline_gap)
    other = baseline.model_copy(
        update={
            "arm": "d",
            "token_ids": (*baseline.token_ids[:2], 9, *baseline.token_ids[3:]),
            "judgement": Judgement(divergence=found),
        }
    )
    return [baseline], [other]


@pytest.mark.parametrize(
    ("gap", "baseline_gap", "status"),
    [
        (0.0, 0.0, "ties"),
        (0.25, 0.0, "ties"),
        (0.26, 0.0, "breaks"),
        (0.1, 0.3, "breaks"),
        (None, 0.0, "breaks"),
    ],
)
def test_a_difference_within_the_measured_rounding_is_a_tie(gap, baseline_gap, status):
    found = compare_outputs(*differing(gap, baseline_gap), BF16)
    assert (found.status, found.ties + found.breaks) == (status, 1)


@pytest.mark.parametrize(
    ("gap", "baseline_gap", "status"),
    [(0.0, 0.0, "ties"), (1e-6, 0.0, "breaks"), (0.0, 1e-6, "breaks"), (None, 0.0, "breaks")],
)
def test_fp32_excuses_nothing_but_equal_logits(gap, baseline_gap, status):
    session = FP32.model_copy(update={"numerics": ROUNDING})
    assert compare_outputs(*differing(gap, baseline_gap), session).status == status
    without_gap = compare_outputs(*differing(None), session)
    assert without_gap.status == "breaks"


def test_without_evidence_a_difference_stays_unjudged():
    assert judge_divergence(None, ROUNDING, "bf16") == "unjudged"
    assert judge_divergence(Divergence(index=0, gap=0.0, baseline_gap=0.0), None, "bf16") == "unjudged"


@pytest.mark.parametrize("measured", [FP32, BF16])
def test_other_kernels_round_in_ways_the_session_has_not_measured(measured):
    for gap in (0.0, 0.26):
        found = compare_outputs(*differing(gap), measured, same_kernels=False)
        assert (found.status, found.differing, found.ties, found.breaks) == ("unjudged", 1, 0, 0)
    assert compare_outputs([trial("b")], [trial("d")], measured, same_kernels=False).status == "identical"


def test_a_lossy_rule_may_differ():
    assert compare_outputs(*differing(9.0), FP32, lossy=True).status == "lossy"


@given(gap=st.floats(0, 1), nearer=st.floats(0, 1))
def test_a_smaller_gap_is_never_judged_more_harshly(gap, nearer):
    far, near = (
        judge_divergence(Divergence(index=0, gap=one, baseline_gap=0.0), ROUNDING, "bf16")
        for one in (max(gap, nearer), min(gap, nearer))
    )
    assert far == "break" or near == "tie"


def test_the_share_of_places_at_which_a_wrong_runner_up_would_pass():
    # Gaps of 0 to 1 in steps of 0.01 and a rounding of 0.25.
    gaps = tuple(0.01 * i for i in range(101))
    assert blind_share(ROUNDING.model_copy(update={"gap_quantiles": gaps})) == 0.25
    assert blind_share(ROUNDING.model_copy(update={"gap_quantiles": (9.0,) * 101})) == 0.0
    assert blind_share(ROUNDING) is None
    assert blind_share(None) is None
