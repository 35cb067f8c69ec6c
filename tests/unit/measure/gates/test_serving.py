"""Every injected fault of a serving session ends as a flagged arm, and what it tells the reader."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

import pytest

from draftrank.measure.evidence import Conditions
from draftrank.measure.gates.serving import SERVING_GATES, judge_served
from draftrank.measure.summaries.serving import summarise_serving
from servings import a_serving, an_arm, parted, with_requests


def verdict(result, concurrency=4, name="ngram"):
    summary = summarise_serving(result)
    return judge_served(summary, next(arm for arm in summary.arms if arm.arm.id == name), concurrency)


def only(arm, index=2, concurrency=4, **changes):
    """Changes one round of one arm."""

    def change(one):
        hit = (one.arm, one.index, one.concurrency) == (arm, index, concurrency)
        return one.model_copy(update=changes) if hit else one

    return a_serving(change=change)


def requests(change, arm="ngram", index=2):
    """Changes or leaves out requests of one round at every concurrency."""

    def of_round(one):
        return with_requests(one, change) if (one.arm, one.index) == (arm, index) else one

    return a_serving(change=of_round)


def first_of(**changes):
    return lambda request: request.model_copy(update=changes) if request.turn == 0 else request


def missing(arm, index=2):
    return a_serving(change=lambda one: None if (one.arm, one.index) == (arm, index) else one)


def counters(arm="ngram", **changes):
    def change(one):
        if one.arm != arm or one.counters is None:
            return one
        return one.model_copy(update={"counters": one.counters.model_copy(update=changes)})

    return a_serving(change=change)


def under(share=1, **conditions):
    """Lets so many of the blocks run under these conditions."""

    def change(one):
        return one.model_copy(update={"conditions": Conditions(**conditions)}) if one.index < share else one

    return a_serving(change=change)


def silent(one):
    """A draft that proposes nothing."""
    if one.arm != "ngram":
        return one
    quiet = with_requests(
        one,
        lambda request: request.model_copy(
            update={
                "accepted": 0,
                "proposed": 0,
                "arrivals_us": (request.arrivals_us[0], sum(request.arrivals_us[1:])),
                "arrival_tokens": (1, request.tokens - 1),
            }
        ),
    )
    return quiet.model_copy(update={"counters": None})


def early(one):
    """Starts a round while the one before still runs."""
    if (one.arm, one.index) != ("ngram", 2):
        return one
    begun = datetime.fromisoformat(one.started_at) - timedelta(seconds=2)
    return one.model_copy(update={"started_at": begun.isoformat()})


def crowded(one):
    """Sends everything at once."""
    if one.arm != "ngram":
        return one
    flat = with_requests(one, lambda request: request.model_copy(update={"sent_us": 0}))
    return flat.model_copy(update={"wall_s": max(request.done_us for request in flat.requests) / 1e6})


def faster_than_its_tokens(one):
    """Cuts all times of the draft to a tenth."""
    if one.arm != "ngram":
        return one
    quick = with_requests(
        one,
        lambda request: request.model_copy(
            update={
                "sent_us": request.sent_us // 10,
                "arrivals_us": tuple(gap // 10 for gap in request.arrivals_us),
            }
        ),
    )
    return quick.model_copy(update={"wall_s": one.wall_s / 10})


def wobbling(one):
    """A twin that is now fast, now slow."""
    if one.arm != "baseline-control":
        return one
    factor = (0.6, 1.6)[one.index % 2]
    slow = with_requests(
        one,
        lambda request: request.model_copy(
            update={
                "sent_us": round(request.sent_us * factor),
                "arrivals_us": tuple(round(gap * factor) for gap in request.arrivals_us),
            }
        ),
    )
    return slow.model_copy(update={"wall_s": one.wall_s * factor, "started_at": one.started_at})


FAULTS = {
    "failed": (
        a_serving(arms={"ngram": an_arm("ngram", failure="the server {ended} with code 1", log_tail="…")}),
        "failed: the server {ended} with code 1",
    ),
    "unplanned": (only("ngram", rate=3.0), "not as planned: a round of ngram at 4, rate 3"),
    "incomplete": (missing("ngram"), "incomplete: 1 of 6 rounds are missing"),
    "unpaired": (missing("baseline"), "unpaired: 1 of 6 rounds have no round of the plain server"),
    "failed-requests": (
        requests(first_of(end="failed", failure="broken off after 3 tokens")),
        "failed requests: 1 of 192, first in round 2 of ngram: broken off after 3 tokens",
    ),
    "truncated": (
        requests(first_of(arrivals_us=(9, 9), arrival_tokens=(1, 5), accepted=3, proposed=6)),
        "truncated: round 2 of ngram: an output was cut off after 6 of 24 tokens",
    ),
    "restarted": (only("ngram", server_started=2), "restarted: the server of ngram was started anew"),
    "contradictory-counts": (
        counters(accepted=10_000, proposed=30_000, drafts=10_000),
        "contradictory counts: round 0 of ngram: the counters tell 10000 steps",
    ),
    "implausible-times": (only("ngram", wall_s=0.4), "implausible times: .* 0.40 wall seconds for"),
    "not-lossless": (
        requests(lambda request: parted(request, 4.0) if request.turn == 0 else request),
        "not lossless: 1 of 96 differ, e.g. by a gap of 4 at token 5 of chat/p0",
    ),
    "implausible-acceptance": (
        a_serving(
            change=lambda one: with_requests(
                one,
                lambda r: (
                    r.model_copy(update={"accepted": r.tokens - 1, "proposed": 99}) if r.accepted else r
                ),
            )
        ),
        r"acceptance length infinite lies outside \[1, 4\]",
    ),
    "implausible-speedup": (
        a_serving(change=faster_than_its_tokens),
        "implausible: 1.*× .* is more than the 2",
    ),
    "proposes-nothing": (a_serving(change=silent), "proposes nothing"),
    "too-few-rounds": (a_serving(rounds=3), "too few rounds: 3 where 4 are the minimum"),
    "client-bound": (only("ngram", client_cpu=0.9), "the client was the bottleneck: it kept 0.90"),
    "disturbed": (under(2, others_cpus=1.2), "disturbed in 33% of the blocks .*1.2 of 2 processors"),
    "throttled": (under(2, quota_throttled=0.3), "slowed down in 33% of the blocks"),
    "no-noise-floor": (
        a_serving(change=lambda one: None if one.arm == "baseline-control" else one),
        "noise unknown",
    ),
    "unstable": (a_serving(control=1.1), "the plain server against its twin came out at 1.0"),
    "noisy": (a_serving(change=wobbling, noise=0.0), "noisy: the plain server against its twin spreads by ±"),
}


@pytest.mark.parametrize("gate", FAULTS)
def test_the_fault_is_flagged_with_its_reason(gate):
    result, reason = FAULTS[gate]
    found = verdict(result)
    assert not found.ranked
    own = next(finding for finding in found.findings if finding.gate == gate)
    assert re.search(reason, own.reason), own.reason


def test_every_gate_has_a_fault_and_says_what_it_is_for():
    assert set(FAULTS) == {gate.id for gate in SERVING_GATES}
    assert all(len(gate.meaning) > 40 for gate in SERVING_GATES)


@pytest.mark.parametrize("concurrency", [1, 4, 16])
def test_an_honest_session_is_ranked(concurrency):
    assert verdict(a_serving({"ngram": 1.3, "slow": 0.7}), concurrency).findings == ()
    assert verdict(a_serving(dtype="fp32"), concurrency).findings == ()


MORE = {
    "the baseline's failed requests": (
        requests(first_of(end="failed", failure="refused"), arm="baseline"),
        "failed-requests",
    ),
    "a round without one of the prompts": (requests(lambda r: r if r.turn else None), "incomplete"),
    "a prompt sent twice": (requests(first_of(turn=1)), "incomplete"),
    "a baseline that speculates": (requests(first_of(accepted=3), arm="baseline"), "contradictory-counts"),
    "figures of one request against its output": (
        requests(first_of(disagreement="12 steps and 30 accepted tokens make 24")),
        "contradictory-counts",
    ),
    "more accepted than a step can take": (
        requests(first_of(accepted=22, proposed=60)),
        "contradictory-counts",
    ),
    "more accepted than proposed": (requests(first_of(accepted=9, proposed=3)), "contradictory-counts"),
    "counters that were reset": (counters(drafts=1, proposed=3, accepted=2), "contradictory-counts"),
    "counters that count more than they proposed": (counters(proposed=1), "contradictory-counts"),
    "tokens past the limit": (
        requests(first_of(arrivals_us=(9, 9), arrival_tokens=(1, 40), accepted=30, proposed=60)),
        "truncated",
    ),
    "rounds that overlap": (a_serving(change=early), "implausible-times"),
    "more requests in flight than stated": (a_serving(change=crowded), "implausible-times"),
    "a start that is no time": (only("ngram", started_at="yesterday"), "implausible-times"),
    "a baseline whose server restarted": (only("baseline", server_started=2), "restarted"),
    "idle servers that used the processor": (under(6, others_cpus=0.6), "disturbed"),
    "a prompt turn of no plan": (requests(first_of(turn=99)), "unplanned"),
    "an arm of no plan": (
        a_serving(change=lambda one: one.model_copy(update={"arm": "other"}) if one.index == 2 else one),
        "unplanned",
    ),
}


@pytest.mark.parametrize("fault", MORE)
def test_other_faults_are_flagged_too(fault):
    result, gate = MORE[fault]
    assert gate in {finding.gate for finding in verdict(result).findings}


def test_a_draft_in_an_engine_that_does_not_tell_proposed_tokens_is_ranked():
    """As SGLang."""
    untold = a_serving(
        change=lambda one: with_requests(
            one.model_copy(update={"counters": None}), lambda r: r.model_copy(update={"proposed": None})
        )
    )
    assert verdict(untold).findings == ()
    cells = next(arm.cells for arm in summarise_serving(untold).arms if arm.arm.id == "ngram")
    told = next(arm.cells for arm in summarise_serving(a_serving()).arms if arm.arm.id == "ngram")
    assert cells[4].acceptance.length == told[4].acceptance.length
    assert cells[4].acceptance.rate is None


def test_a_round_may_send_every_turn_twice_if_all_of_its_block_do():
    def twice(one):
        later = one.requests[-1].done_us
        again = tuple(
            request.model_copy(update={"sent_us": request.sent_us + later}) for request in one.requests
        )
        longer = {"requests": (*one.requests, *again), "counters": None}
        return one.model_copy(
            update=longer | {"wall_s": again[-1].done_us / 1e6, "concurrency": one.concurrency}
        )

    def spaced(one):
        begun = datetime.fromisoformat(one.started_at)
        start = datetime.fromisoformat("2026-11-30T10:00:00+00:00")
        return twice(one).model_copy(update={"started_at": (start + 2 * (begun - start)).isoformat()})

    assert verdict(a_serving(concurrencies=(1,), change=spaced), 1).findings == ()
    alone = a_serving(concurrencies=(1,), change=lambda one: spaced(one) if one.arm == "ngram" else one)
    assert "incomplete" in {finding.gate for finding in verdict(alone, 1).findings}


def test_counters_may_count_what_lies_behind_an_end():
    def change(one):
        if one.counters is None:
            return one
        beyond = one.counters.model_copy(
            update={"accepted": one.counters.accepted + 9, "proposed": one.counters.proposed}
        )
        return one.model_copy(update={"counters": beyond})

    assert verdict(a_serving(change=change)).ranked


def test_a_session_that_went_on_in_another_process_has_not_restarted():
    def change(one):
        later = one.index >= 3
        return one.model_copy(update={"process": int(later), "server_started": 2 if later else 1})

    assert verdict(a_serving(change=change)).ranked


def test_one_disturbed_block_of_six_and_unwatched_rounds_pass():
    assert verdict(under(1, others_cpus=1.2)).ranked
    assert verdict(a_serving(change=lambda one: one.model_copy(update={"conditions": None}))).ranked


def test_a_fault_at_one_concurrency_leaves_the_others_ranked():
    result = only("ngram", client_cpu=0.9)
    assert verdict(result, 1).ranked
    assert not verdict(result, 4).ranked


def test_a_round_without_requests_is_incomplete():
    empty = a_serving(change=lambda one: with_requests(one, lambda _: None) if one.arm == "ngram" else one)
    assert "incomplete" in {finding.gate for finding in verdict(empty).findings}
