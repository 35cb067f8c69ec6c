"""Proposers that stop early leave the law of whole outputs exactly as it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftrank.engine.proposers.draft_model import ModelProposer
from draftrank.engine.proposers.drafting import Drafting
from draftrank.engine.proposers.early_exit import EarlyExitProposer
from exact_law import TableRuntime, law, own_law
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
    found = law(target, proposer, 2)
    expected = own_law(target)
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-5)
    for output, probability in expected.items():
        assert found[output] == pytest.approx(probability, abs=1e-5)
