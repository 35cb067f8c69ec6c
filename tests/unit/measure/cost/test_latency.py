"""Which forwards are timed, for every kind of draft; no time is asserted."""

from __future__ import annotations

import pytest

from draftrank.engine.backends.cpp.runtime import CppRuntime
from draftrank.engine.backends.transformers.runtime import TransformersRuntime
from draftrank.measure.cost.latency import (
    MAX_ROUNDS,
    MIN_ROUNDS,
    averaged,
    measure_latencies,
    verification_sizes,
)
from draftrank.measure.records import ForwardLatency
from models import small_model
from runtimes import runtime_by

SHORT, LONG = (5, 6, 7), tuple(range(3, 43))


@pytest.mark.parametrize(
    ("k", "sizes"),
    [(0, (1,)), (1, (1, 2, 5, 9)), (4, (1, 2, 3, 4, 5, 9)), (10, (1, 2, 3, 4, 5, 6, 9, 11))],
)
def test_sizes_cover_a_verification_and_a_little_more(k, sizes):
    assert verification_sizes(k) == sizes


def test_a_large_k_leaves_sizes_out_but_not_its_own():
    assert len(verification_sizes(64)) < 15
    assert verification_sizes(64)[-1] == 65


def timed(draft_of, k=2):
    target = TransformersRuntime(small_model("llama"))
    return measure_latencies(target, draft_of(target), k, [SHORT, LONG])


@pytest.mark.parametrize(
    ("draft_of", "draft_sizes"),
    [
        (lambda _: None, set()),
        (lambda target: target.first_layers(2), {1}),
        (lambda _: TransformersRuntime(small_model("llama", layers=1, seed=3)), {1, 2}),
    ],
)
def test_every_forward_of_a_step_is_timed_at_both_contexts(draft_of, draft_sizes):
    found = timed(draft_of)
    for context in (len(SHORT), len(LONG)):
        here = [entry for entry in found if entry.context == context]
        assert {entry.tokens for entry in here if entry.part == "draft"} == draft_sizes
        assert {entry.tokens for entry in here if entry.part == "target"} == {1, 2, 3, 5, 9}
    assert all(MIN_ROUNDS <= entry.samples <= MAX_ROUNDS and entry.median_s > 0 for entry in found)


def test_a_draft_that_chooses_by_itself_is_timed_doing_so(monkeypatch):
    draft = runtime_by(small_model("llama", layers=1, seed=3), "cpp")
    target = runtime_by(small_model("llama"), "cpp")
    fed, chosen = [], []
    forward, chain = CppRuntime.forward, CppRuntime.chain
    monkeypatch.setattr(
        CppRuntime, "forward", lambda self, *read, **how: fed.append(self) or forward(self, *read, **how)
    )
    monkeypatch.setattr(CppRuntime, "chain", lambda self, *asked: chosen.append(self) or chain(self, *asked))
    found = measure_latencies(target, draft, 2, [SHORT, LONG])
    assert sum(runtime is draft for runtime in fed) == 2  # the contexts
    assert set(chosen) == {draft}
    samples = sum(entry.samples for entry in found if entry.part == "draft")
    assert len(chosen) >= samples
    assert draft.length == len(LONG)


def test_sizes_that_do_not_fit_the_window_are_left_out():
    target = TransformersRuntime(small_model("llama", window=44))
    found = measure_latencies(target, None, 2, [LONG])
    assert {entry.tokens for entry in found} == {1, 2, 3}


def test_several_looks_are_averaged_by_their_samples():
    def look(median_s, samples, tokens=1):
        return ForwardLatency(part="target", tokens=tokens, context=9, median_s=median_s, samples=samples)

    one, two = averaged([look(0.01, 10), look(0.5, 3, tokens=4), look(0.02, 30)])
    assert (one.median_s, one.samples) == (pytest.approx(0.0175), 40)
    assert two == look(0.5, 3, tokens=4)
