"""The law of greedy output over many families: recurrent, hybrid, mixtures of experts, latent attention, biases by distance,
softcapping, sinks, windows."""

from __future__ import annotations

import pytest
import torch

from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.engine.backends.registry import open_runtime
from draftrank.engine.loop import Request, autoregressive, speculative
from draftrank.engine.proposers.draft_model import ModelProposer
from draftrank.engine.proposers.drafting import Drafting
from draftrank.engine.proposers.ngram import NgramProposer
from draftrank.engine.sampling import Sampler
from families import FAMILIES, READS_NO_TREES, WITH_STATE
from models import small_model
from proposers import ScriptedProposer, Steps, check_fresh

SAMPLE = (
    "bloom", "cohere2", "deepseek_v3", "deepseek_v4", "falcon_h1", "gemma2", "glm4", "gpt_neox", "gpt_oss", "jamba", "lfm2",
    "llama4_text", "mamba", "mamba2", "mixtral", "olmo2", "phi3", "qwen3_moe", "qwen3_next",
)  # fmt: skip
OTHERS = sorted({*FAMILIES, *READS_NO_TREES, *WITH_STATE} - {*SAMPLE})
LENGTH = 20
MAX_TIE = 1e-3
"""Gap between two logits within which rounding may choose either."""


def check_law(name, seeds, rates):
    model = small_model(name)
    # Random weights repeat one token for ever where the head is the embedding.
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.roll(7, 0).clone(), requires_grad=False)
    target = open_runtime(model, "transformers")
    distinct = set()
    for seed in seeds:
        chance = torch.Generator().manual_seed(seed)
        prompt = tuple(torch.randint(3, 61, (10 + 9 * seed,), generator=chance).tolist())
        request = Request(prompt, LENGTH)
        expected = autoregressive(target, request).token_ids
        distinct |= {*expected}
        scripted = (ScriptedProposer(expected, len(prompt), rate, seed) for rate in rates)
        for proposer in (NgramProposer(1, 3), *scripted):
            found = speculative(target, proposer, request, 4)
            assert is_same(model, prompt, found.token_ids, expected), (seed, proposer)
    assert len(distinct) > 1


def is_same(model, prompt, found, expected):
    """The same tokens, up to one that the model itself holds as likely as the other."""
    parting = next(
        (i for i, both in enumerate(zip(found, expected, strict=True)) if both[0] != both[1]), None
    )
    if parting is None:
        return True
    with torch.inference_mode():
        row = model(torch.tensor([[*prompt, *expected[:parting]]]), use_cache=False).logits[0, -1]
    return abs(float(row[found[parting]] - row[expected[parting]])) < MAX_TIE


@pytest.mark.parametrize("name", SAMPLE)
def test_speculation_says_what_the_target_says_alone(name):
    check_law(name, range(1), (0.5,))


@pytest.mark.parametrize("drafting", [Drafting(), Drafting(None, 0.05)], ids=["chain", "tree"])
@pytest.mark.parametrize("name", ["falcon_h1", "jamba", "lfm2"])
def test_a_draft_with_a_state_proposes_as_with_a_fresh_one(name, drafting):
    """Where it is asked for a tree, it goes on behind the most probable token of each level alone."""
    target, draft = (open_runtime(small_model(one), "transformers") for one in ("llama", name))
    sampler = Sampler(DecodingMode())
    proposer = ModelProposer(draft, drafting)
    found = Steps(seed=3).run(target, proposer, (5, 9, 11, 4, 7), sampler, 4, 8)
    assert sum(len(proposal.tokens) for _, _, proposal in found) > 8
    other = ModelProposer(open_runtime(small_model(name), "transformers"), drafting)
    check_fresh(lambda: (target, other), found, sampler, thresholds=(0.05,))


@pytest.mark.nightly
@pytest.mark.parametrize("name", [*SAMPLE, *OTHERS])
def test_speculation_says_what_the_target_says_alone_at_length(name):
    check_law(name, range(8), (0.0, 0.3, 1.0))
