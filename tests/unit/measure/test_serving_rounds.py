"""Rounds of a serving session: orders and arrivals, and records of what came back."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftrank.measure.serving_records import ServedRequest
from draftrank.measure.serving_rounds import (
    Place,
    counters_between,
    diverged,
    judged,
    moments_of,
    order_of,
    requests_of,
    told_at,
)
from draftrank.serving.base import Completion, CompletionRequest, Counts
from draftrank.serving.http import Client
from draftrank.serving.load import Answer, Load
from draftrank.serving.vllm import Vllm
from model_server import ModelServer, serving
from served_sessions import OUTPUT, a_request, a_round, a_turn, parted_request

PLACE = Place("ngram", 1, None, 0, 0, 0, 0)


def a_completion(**changes) -> Completion:
    values = {
        "token_ids": OUTPUT,
        "finish": "length",
        "accepted": 3,
        "proposed": 6,
        "began": 10.001,
        "arrivals": ((10.051, 1), (10.0710004, 2), (10.101, 3)),
    }
    return Completion(**(values | changes))


def served(completion: Completion | None, *, drafted: bool = True, **changes) -> ServedRequest:
    answer = Answer(0, 10.001, 10.101, completion, **changes)
    (found,) = requests_of(
        Load((replace(answer, sent=10.0), answer), 0.1), [a_turn(), a_turn()], drafted=drafted
    )[1:]
    return found


@given(turns=st.integers(1, 40), concurrency=st.integers(1, 32), index=st.integers(0, 9))
def test_a_round_sends_every_turn_equally_often_and_enough_of_them(turns, concurrency, index):
    place = replace(PLACE, concurrency=concurrency, index=index)
    order = order_of(turns, place, seed=3)
    assert len(set(Counter(order).values())) == 1
    assert set(order) == set(range(turns))
    assert 2 * concurrency <= len(order) < 2 * concurrency + turns or len(order) == turns
    assert order == order_of(turns, replace(place, arm="another", position=4, attempt=1, process=2), seed=3)


def test_orders_differ_between_blocks_and_seeds():
    orders = {tuple(order_of(12, replace(PLACE, index=index), seed)) for index in range(9) for seed in (0, 1)}
    assert len(orders) == 18


def test_arrivals_are_as_many_a_second_as_asked_and_alike_for_all_arms():
    place = replace(PLACE, rate=4.0)
    moments = moments_of(4000, place, seed=1)
    assert moments is not None
    assert moments[0] == 0.0
    assert moments == sorted(moments)
    assert moments[-1] == pytest.approx(1000, rel=0.05)  # of a Poisson process
    assert moments == moments_of(4000, replace(place, arm="another"), seed=1)
    assert moments != moments_of(4000, place, seed=2)
    assert moments_of(4000, PLACE, seed=1) is None


def test_stamps_are_whole_microseconds_that_add_up():
    found = served(a_completion())
    assert (found.sent_us, found.arrivals_us, found.arrival_tokens) == (
        1000,
        (50_000, 20_000, 30_000),
        (1, 2, 3),
    )
    assert found.done_us == 101_000
    assert (found.token_ids, found.end, found.accepted, found.proposed) == (None, "length", 3, 6)


def test_a_plain_server_and_one_that_tells_nothing_have_no_acceptance():
    for found in (served(a_completion(), drafted=False), served(a_completion(figures=False))):
        assert (found.accepted, found.proposed) == (None, None)


def test_contradictions_are_kept_and_joined_steps_are_none():
    odd = served(a_completion(disagreement="it counts 9", accepted=9))
    assert (odd.disagreement, odd.accepted) == ("it counts 9", None)
    joined = served(a_completion(disagreement="its steps accepted", joined=True))
    assert (joined.disagreement, joined.accepted) == (None, 3)
    short = served(a_completion(token_ids=OUTPUT[:4]))
    assert (short.end, short.failure) == ("failed", "the server counts 6 tokens, and 4 came")


def test_a_failed_request_says_why_and_not_at_any_length():
    found = served(None, failure="x" * 9999)
    assert (found.end, found.tokens, len(found.failure or "")) == ("failed", 0, 4000)


def test_counters_are_differenced_and_tell_of_a_server_that_started_anew():
    before, after = Counts(3, 9, 4), Counts(5, 15, 6)
    found, anew = counters_between(before, after)
    assert found is not None
    assert (found.drafts, found.proposed, found.accepted, anew) == (2, 6, 2, False)
    assert counters_between(after, before) == (None, True)
    assert counters_between(before, None) == (None, True)
    assert counters_between(None, None) == counters_between(None, after) == (None, False)


def test_a_divergence_is_judged_once_by_the_plain_server():
    turns = [a_turn(), a_turn(prompt="p1")]
    unjudged = [parted_request(turn).model_copy(update={"divergence": None}) for turn in (0, 1, 0)]
    ended = a_request(0, token_ids=OUTPUT[:2], arrivals_us=(5, 5), arrival_tokens=(1, 1), end="stop")
    one = a_round("ngram", requests=(*unjudged, ended, a_request()), wall_s=1.0)
    places = list(diverged([one, one], turns))
    assert places == [(0, 3), (1, 3), (0, 2)]
    prompts = [CompletionRequest((5, number), 6, frozenset()) for number in range(2)]
    server = ModelServer()
    with serving(server) as port:
        told = told_at(Vllm(Path("x")), Client(port), prompts, turns, places, lambda: None)
    assert [asked["prompt"] for asked in server.requests] == [
        [5, 0, *OUTPUT[:3]],
        [5, 1, *OUTPUT[:3]],
        [5, 0, *OUTPUT[:2]],
    ]
    assert {asked["max_tokens"] for asked in server.requests} == {1}
    told[0, 3] = {7: -0.75, 1: -0.5}  # the token that came, and the plain server's
    told[1, 3] = {1: -0.5}
    told[0, 2] = {4: -0.25, 9: -1.0}
    found = [request.divergence for request in judged(one, turns, told).requests]
    assert [None if one is None else (one.index, one.gap, one.plain_gap) for one in found] == [
        (3, 0.25, 0.0),
        (3, None, 0.0),
        (3, 0.25, 0.0),
        (2, None, 0.0),
        None,
    ]
    assert not list(diverged([judged(one, turns, told)], turns))
