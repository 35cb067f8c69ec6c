"""Token ids against the baseline's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.measure.fidelity import compare_outputs, first_difference
from unit.board.builders import GREEDY, trial

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
    found = compare_outputs(baseline, [same[0], same[1], late, early], GREEDY)
    assert (found.status, found.compared, found.differing) == ("differs", 4, 2)
    assert found.exact_match == 0.5
    assert [(place.prompt, place.index) for place in found.divergences] == [("p2", 7), ("p3", 2)]
    assert found.earliest.prompt == "p3"


def test_an_output_that_stops_early_differs():
    baseline, shorter = trial("b", tokens=9), trial("d", tokens=5)
    assert compare_outputs([baseline], [shorter], GREEDY).divergences[0].index == 5


@pytest.mark.parametrize(
    ("mode", "arm"), [(DecodingMode(temperature=0.7), [trial("d")]), (GREEDY, [trial("d", prompt="other")])]
)
def test_nothing_to_compare(mode, arm):
    found = compare_outputs([trial("b")], arm, mode)
    assert (found.status, found.compared, found.exact_match, found.earliest) == (
        "not compared",
        0,
        None,
        None,
    )


def test_equal_outputs_are_identical():
    found = compare_outputs([trial("b")], [trial("d")], GREEDY)
    assert (found.status, found.exact_match, found.divergences) == ("identical", 1.0, ())
