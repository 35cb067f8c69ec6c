"""Proposers that stop early, and trees, leave the law of whole outputs exactly as it is."""

from __future__ import annotations

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from draftrank.engine.proposers.cascade import CascadeProposer
from draftrank.engine.proposers.draft_model import ModelProposer
from draftrank.engine.proposers.drafting import Drafting
from draftrank.engine.proposers.early_exit import EarlyExitProposer
from draftrank.engine.proposers.ngram import NgramProposer
from draftrank.engine.proposers.suffix import SuffixProposer
from exact_law import LENGTH, TableRuntime, law, own_law
from examples import examples


class SharedView(TableRuntime):
    """Another table over the same sequence, as an early exit shares its target's cache."""

    def __init__(self, seed, target):
        super().__init__(seed)
        self.target = target
        del self.tokens

    def __getattr__(self, name):
        if name == "tokens":
            return self.target.tokens
        raise AttributeError(name)


@examples(8)
@given(
    seeds=st.tuples(st.integers(0, 99), st.integers(100, 199)),
    threshold=st.sampled_from([None, 0.3, 0.6, 0.99]),
    shared=st.booleans(),
)
def test_stopping_early_keeps_the_outputs_law_exactly(seeds, threshold, shared):
    target = TableRuntime(seeds[0])
    if shared:
        proposer = EarlyExitProposer(SharedView(seeds[1], target), Drafting(threshold))
    else:
        proposer = ModelProposer(TableRuntime(seeds[1]), Drafting(threshold))
    check_law(target, proposer, 2)


@examples(8)
@given(
    seeds=st.tuples(st.integers(0, 99), st.integers(100, 199)),
    how=st.builds(Drafting, st.sampled_from([None, 0.1, 0.4]), st.sampled_from([0.02, 0.2, 0.6])),
    kind=st.sampled_from(["model", "exit", "suffix", "cascade"]),
    k=st.integers(2, 4),
)
def test_trees_keep_the_outputs_law_exactly(seeds, how, kind, k):
    """The draft's tokens are its most probable ones, however unlike the target's."""
    target = TableRuntime(seeds[0])
    model = ModelProposer(TableRuntime(seeds[1]), how)
    proposer = {
        "model": model,
        "exit": EarlyExitProposer(SharedView(seeds[1], target), how),
        "suffix": SuffixProposer(1, 4, 8.0, branch_above=how.branch_above),
        "cascade": CascadeProposer(NgramProposer(2, 2), model),
    }[kind]
    widths = []
    propose = proposer.propose

    def listen(context, count):
        proposal = propose(context, count)
        widths.append(len(list(proposal.children(-1))))
        return proposal

    proposer.propose = listen
    check_law(target, proposer, k, 5)
    event(f"most beside each other: {max(widths)}")


def check_law(target, proposer, k, length=LENGTH):
    found, expected = law(target, proposer, k, length), own_law(target, length)
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-5)
    for output, probability in expected.items():
        assert found[output] == pytest.approx(probability, abs=1e-5)
