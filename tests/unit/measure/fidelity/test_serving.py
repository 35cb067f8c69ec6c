"""Outputs of served drafts against the plain server's: what rounding explains, and what it does not."""

from __future__ import annotations

import pytest

from draftrank.measure.summaries.serving import summarise_serving
from servings import a_serving, parted, with_requests


def judged(change, concurrency=4, **changes):
    """The draft's fidelity where `change(round, request)` replaces requests."""
    result = a_serving(change=lambda one: with_requests(one, lambda request: change(one, request)), **changes)
    summary = summarise_serving(result)
    arm = next(found for found in summary.arms if found.arm.id == "ngram")
    return arm.cells[concurrency].fidelity


def of_draft(gap, *, turns=range(3), **places):
    """Lets the draft's outputs of some turns part by this gap."""
    return lambda one, request: (
        parted(request, gap, **places) if one.arm == "ngram" and request.turn in turns else request
    )


def of_all(gap, plain_turns, draft_turns, draft_gap=None):
    """Lets outputs of every arm part."""

    def change(one, request):
        own = draft_turns if one.arm == "ngram" else plain_turns
        wide = draft_gap if one.arm == "ngram" and draft_gap is not None else gap
        return parted(request, wide) if request.turn in own else request

    return change


def test_equal_outputs_are_identical():
    found = judged(lambda _, request: request)
    assert (found.status, found.differing, found.words) == ("identical", 0, "identical")
    assert found.compared == 6 * 16


@pytest.mark.parametrize(
    ("gap", "status"), [(0.0, "ties"), (0.0009, "ties"), (0.002, "breaks"), (0.3, "breaks")]
)
def test_in_fp32_at_one_request_in_flight_only_ties_are_excused(gap, status):
    found = judged(of_all(gap, plain_turns=range(16), draft_turns=range(2)), concurrency=1, dtype="fp32")
    assert found.status == status  # whatever the plain arms do
    assert found.lossless == (status == "ties")


@pytest.mark.parametrize(("gap", "status"), [(0.4, "ties"), (0.6, "breaks")])
def test_in_bf16_a_gap_of_rounding_is_a_tie_where_the_plain_server_repeats_itself(gap, status):
    found = judged(of_draft(gap, turns=range(10)), concurrency=1)
    assert found.status == status


def test_no_wider_than_the_plain_servers_own_is_excused():
    found = judged(of_all(0.8, range(6), range(6), draft_gap=0.7))
    assert found.status == "as plain"
    assert found.words == "36 of 96 differ, no more and no wider than the plain server's own"
    assert judged(of_all(0.8, range(6), range(6), draft_gap=0.9)).status == "breaks"


def test_more_than_the_plain_servers_own_breaks_even_where_each_could_be_a_tie():
    found = judged(of_all(0.1, range(1), range(15)))
    assert found.status == "breaks"
    assert "more than the plain server's own outputs do (6%)" in found.words
    assert judged(of_all(0.1, range(5), range(7))).status == "ties"


def test_plain_outputs_at_higher_concurrencies_show_what_verifying_several_tokens_does():
    def change(one, request):
        own = range(14) if one.arm == "ngram" else range(14) if one.concurrency == 16 else range(1)
        return parted(request, 0.2) if request.turn in own else request

    assert judged(change, concurrency=4).status == "ties"
    assert judged(change, concurrency=1).status == "ties"


def test_a_token_that_the_plain_server_does_not_name_breaks():
    found = judged(of_draft(None))
    assert found.status == "breaks"
    assert "a token that the plain server does not name at token 5 of chat/p0" in found.words


def test_an_output_that_ends_early_is_no_tie():
    def cut(request):
        tokens = tuple(range(request.tokens))
        return parted(request, None, index=request.tokens).model_copy(update={"token_ids": tokens})

    found = judged(lambda one, r: cut(r) if one.arm == "ngram" and r.turn == 0 else r)
    assert found.status == "breaks"
    assert "chat/p0 ends where the plain server goes on" in found.words


def test_where_the_plain_output_had_ended_the_other_token_decides():
    beyond = {"plain_gap": None, "index": 24}
    assert judged(of_draft(0.1, turns=(0,), **beyond)).status == "ties"
    assert judged(of_draft(3.0, turns=(0,), **beyond)).status == "breaks"


def test_failed_requests_are_not_compared():
    def fail(_, request):
        return request.model_copy(update={"end": "failed", "failure": "hung"})

    assert judged(fail).status == "not compared"


def test_an_output_that_differs_and_was_not_judged_is_no_equal_one():
    def change(one, request):
        looked = parted(request, 0.0).model_copy(update={"divergence": None})
        return looked if one.arm == "ngram" and request.turn == 0 else request

    found = judged(change)
    assert (found.status, found.lossless) == ("unjudged", False)
    assert found.words == "6 of 96 differ, 6 of them not judged; run the same command again"
