"""Medusa's lossy rule: what it accepts, and what stays true of the loop."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.catalog.recipe import TypicalAcceptance
from draftrank.engine.backends.transformers.runtime import TransformersRuntime
from draftrank.engine.loop import Request, autoregressive, speculative
from draftrank.engine.proposer import Proposal
from draftrank.engine.proposers.draft_model import ModelProposer
from draftrank.engine.sampling import Sampler, most_likely
from draftrank.engine.verification import verify_choices, verify_typical
from examples import examples
from models import small_model

GREEDY = DecodingMode()
rows = st.lists(st.floats(-4, 4, width=32), min_size=5, max_size=5)
rules = st.builds(TypicalAcceptance, threshold=st.floats(0.01, 1.0), alpha=st.floats(0.01, 1.0))


@given(logits=rows, token=st.integers(0, 4), rule=rules)
def test_a_token_stands_when_its_probability_reaches_the_bar(logits, token, rule):
    p = torch.tensor(logits).softmax(dim=-1).double()
    entropy = -float((p * p.log()).sum())
    bar = min(rule.threshold, rule.alpha * math.exp(-entropy))
    if math.isclose(float(p[token]), bar, rel_tol=1e-4):
        return  # rounding decides
    verdict = verify_typical(torch.tensor([logits, logits]), Proposal([token]), Sampler(GREEDY), rule)
    assert verdict.accepted == (p[token] > bar)
    assert verdict.next_token == int(torch.tensor(logits).argmax())


@given(
    logits=st.lists(rows, min_size=4, max_size=4),
    tokens=st.lists(st.integers(0, 4), min_size=3, max_size=3),
    rule=rules,
)
def test_it_never_accepts_less_than_the_greedy_rule(logits, tokens, rule):
    table, proposal = torch.tensor(logits), Proposal(tokens)
    lossy = verify_typical(table, proposal, Sampler(GREEDY), rule)
    assert lossy.accepted >= verify_choices(most_likely(table).__getitem__, proposal).accepted


def test_sampling_modes_judge_by_their_own_distribution():
    logits = torch.tensor([[2.0, 1.9, -9.0], [0.0, 5.0, 0.0]])
    sampler = Sampler(DecodingMode(temperature=1.0, top_k=1))
    verdict = verify_typical(logits, Proposal([1]), sampler, TypicalAcceptance())
    assert (verdict.accepted, verdict.next_token) == (0, 0)


@examples(15)
@given(k=st.integers(1, 5), limit=st.integers(1, 24), seed=st.integers(0, 3), rule=rules)
def test_the_loops_sums_hold_and_tighter_rules_come_closer_to_greedy(k, limit, seed, rule):
    target = TransformersRuntime(small_model("llama", seed=seed))
    draft = ModelProposer(TransformersRuntime(small_model("llama", seed=seed + 9, layers=1)))
    request = Request((1, 5, 9, 11), limit, stop_tokens=frozenset({2}))
    found = speculative(target, draft, request, k, rule)
    assert len(found.token_ids) == 1 + found.steps + sum(i * n for i, n in enumerate(found.accept_histogram))
    assert len(found.token_ids) <= limit
    assert 1 <= found.acceptance_length <= k + 1
    exact = speculative(target, draft, request, k)
    assert exact.token_ids == autoregressive(target, request).token_ids


def test_a_loose_rule_accepts_more_of_a_poor_draft():
    target = TransformersRuntime(small_model("llama"))
    draft = ModelProposer(TransformersRuntime(small_model("llama", seed=5, layers=1)))
    request = Request((1, 5, 9, 11), 60)
    loose = TypicalAcceptance(threshold=0.001, alpha=0.001)
    assert speculative(target, draft, request, 3, loose).steps < speculative(target, draft, request, 3).steps


@pytest.mark.parametrize("knob", [{"threshold": 0.0}, {"alpha": 1.5}, {"epsilon": 0.1}])
def test_wrong_knobs_are_refused(knob):
    with pytest.raises(ValueError, match=next(iter(knob))):
        TypicalAcceptance(**knob)
