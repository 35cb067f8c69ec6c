"""The session's own test of samples: honest drafts pass, broken rules do not."""

from __future__ import annotations

import pytest

from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.engine import loop
from draftrank.engine.backends.base import Runtime
from draftrank.engine.proposers.draft_model import ModelProposer
from draftrank.engine.proposers.ngram import NgramProposer
from draftrank.engine.verification import Verdict
from draftrank.measure.fidelity.sampling_check import check_sampling
from models import small_model
from runtimes import runtime_by

PROMPT = (1, 5, 6, 7, 5, 6, 7, 5, 6)
MODE = DecodingMode(temperature=1.0)


def model(seed: int = 0, layers: int = 3) -> Runtime:
    """In the quickest backend: hundreds of samples are drawn."""
    return runtime_by(small_model("llama", seed=seed, layers=layers, vocabulary=9), "cpp")


def check(proposer, mode=MODE):
    return check_sampling(model(), proposer, PROMPT, mode, 2, place=("t", "p"), draws=400)


@pytest.mark.parametrize(
    "mode", [MODE, DecodingMode(temperature=0.7, top_p=0.8), DecodingMode(temperature=1.3, top_k=3)]
)
@pytest.mark.parametrize("proposer", [lambda: ModelProposer(model(7, 1)), lambda: NgramProposer(1, 2)])
def test_honest_drafts_follow_the_target(proposer, mode):
    found = check(proposer(), mode)
    assert found.bins > 2
    assert found.p_value > 0.001


def test_a_rule_that_accepts_everything_is_caught(monkeypatch):
    def careless(logits, proposal, sampler, typical, _):
        assert typical is None
        return Verdict(len(proposal.tokens), sampler.draw(sampler.probabilities(logits[-1:])[0]))

    monkeypatch.setattr(loop, "verify", careless)
    assert check(ModelProposer(model(7, 1))).p_value < 1e-6


def test_a_certain_target_leaves_one_outcome():
    found = check(NgramProposer(1, 2), DecodingMode(temperature=1.0, top_k=1))
    assert (found.p_value, found.statistic) == (1.0, pytest.approx(0.0))
