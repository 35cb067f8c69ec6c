"""Which forwards are timed, for every kind of draft; no time is asserted."""

from __future__ import annotations

from collections import Counter

import pytest

from draftrank.engine.backends.cpp.runtime import CppRuntime
from draftrank.engine.backends.transformers.runtime import TransformersRuntime
from draftrank.measure.cost.latency import (
    MAX_ROUNDS,
    MIN_ROUNDS,
    SELDOM,
    ForwardError,
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
    return measure_latencies(target, [(draft_of(target), k)], [SHORT, LONG])[0]


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
    fewest = MIN_ROUNDS // SELDOM  # on a busy machine, of forwards that few steps run
    assert all(fewest <= entry.samples <= MAX_ROUNDS and entry.median_s > 0 for entry in found)


def test_a_draft_that_chooses_by_itself_is_timed_doing_so(monkeypatch):
    draft = runtime_by(small_model("llama", layers=1, seed=3), "cpp")
    target = runtime_by(small_model("llama"), "cpp")
    fed, chosen = [], []
    forward, chain = CppRuntime.forward, CppRuntime.chain
    monkeypatch.setattr(
        CppRuntime, "forward", lambda self, *read, **how: fed.append(self) or forward(self, *read, **how)
    )
    monkeypatch.setattr(CppRuntime, "chain", lambda self, *asked: chosen.append(self) or chain(self, *asked))
    (found,) = measure_latencies(target, [(draft, 2)], [SHORT, LONG])
    assert sum(runtime is draft for runtime in fed) == 2  # the contexts
    assert set(chosen) == {draft}
    samples = sum(entry.samples for entry in found if entry.part == "draft")
    assert len(chosen) >= samples
    assert draft.length == len(LONG)


def test_sizes_that_do_not_fit_the_window_are_left_out():
    target = TransformersRuntime(small_model("llama", window=44))
    (found,) = measure_latencies(target, [(None, 2)], [LONG])
    assert {entry.tokens for entry in found} == {1, 2, 3}


def test_several_looks_are_averaged_by_their_samples():
    def look(median_s, samples, tokens=1):
        return ForwardLatency(part="target", tokens=tokens, context=9, median_s=median_s, samples=samples)

    one, two = averaged([look(0.01, 10), look(0.5, 3, tokens=4), look(0.02, 30)])
    assert (one.median_s, one.samples) == (pytest.approx(0.0175), 40)
    assert two == look(0.5, 3, tokens=4)


def test_arms_share_the_rounds_and_each_gets_its_own_forwards(monkeypatch):
    target = TransformersRuntime(small_model("llama"))
    drafts = [TransformersRuntime(small_model("llama", layers=1, seed=seed)) for seed in (3, 4)]
    arms = [(None, 0), (drafts[0], 2), (None, 5), (drafts[1], 2), (target.first_layers(2), 1)]
    read = Counter()
    forward = TransformersRuntime.forward

    def counted(self, tokens, *how, **named):
        read[self is target, len(tokens)] += 1
        return forward(self, tokens, *how, **named)

    monkeypatch.setattr(TransformersRuntime, "forward", counted)
    found = measure_latencies(target, arms, [LONG])
    own = [{(entry.part, entry.tokens): entry for entry in look} for look in found]
    drafted = {("draft", 1), ("draft", 2)}
    sizes = [{("target", size) for size in verification_sizes(k)} for _, k in arms]
    assert [set(look) for look in own] == [
        sizes[0],
        sizes[1] | drafted,
        sizes[2],
        sizes[3] | drafted,
        sizes[4] | {("draft", 1)},
    ]
    assert all(own[0]["target", 1] is look["target", 1] for look in own)  # one measurement
    assert own[1]["draft", 1] is not own[3]["draft", 1]
    for size in {2, 3, 5, 6, 9}:
        samples = next(look["target", size].samples for look in own if ("target", size) in look)
        assert read[True, size] == samples + 1  # to warm up


def test_a_forward_that_fails_names_the_arms_that_run_it(monkeypatch):
    target = TransformersRuntime(small_model("llama"))
    broken = TransformersRuntime(small_model("llama", layers=1, seed=3))
    forward = TransformersRuntime.forward

    def failing(refused):
        def read(self, tokens, *how, **named):
            if refused(self, len(tokens)):
                raise RuntimeError("no memory")
            return forward(self, tokens, *how, **named)

        monkeypatch.setattr(TransformersRuntime, "forward", read)

    arms = [(None, 0), (broken, 2), (None, 5)]
    for refused, named in [
        (lambda runtime, _: runtime is broken, [1]),
        (lambda runtime, tokens: runtime is target and tokens == 6, [2]),
        (lambda runtime, tokens: runtime is target and tokens == 2, [1, 2]),
    ]:
        failing(refused)
        with pytest.raises(ForwardError, match="no memory") as found:
            measure_latencies(target, arms, [LONG])
        assert list(found.value.arms) == named
