"""Speculative sampling leaves the target's distribution unchanged: exactly, and over many seeds."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.engine.backends.transformers.runtime import TransformersRuntime
from draftrank.engine.loop import Request, autoregressive, speculative
from draftrank.engine.proposer import Proposal
from draftrank.engine.proposers.cascade import CascadeProposer
from draftrank.engine.proposers.draft_model import ModelProposer
from draftrank.engine.proposers.drafting import Drafting
from draftrank.engine.proposers.early_exit import EarlyExitProposer
from draftrank.engine.proposers.ngram import NgramProposer
from draftrank.engine.proposers.suffix import SuffixProposer
from draftrank.engine.sampling import Sampler, distribution, most_likely, pick
from draftrank.engine.verification import coupled, verify
from examples import examples
from models import small_model
from runtimes import runtime_by

modes = st.builds(
    DecodingMode,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.7]),
    top_k=st.sampled_from([None, 1, 2, 4]),
    top_p=st.sampled_from([None, 0.3, 0.8, 1.0]),
)
rows = st.lists(st.floats(-4, 4, width=32), min_size=5, max_size=5)


def measures(chosen, low=0.0, high=1.0):
    """How much of [0, 1) gives each value of a function that takes every value on one interval alone."""
    first, last = chosen(low), chosen(high - 1e-7)
    if first == last or high - low < 1e-6:
        return Counter({first: high - low})
    middle = (low + high) / 2
    return measures(chosen, low, middle) + measures(chosen, middle, high)


def choices(p, q, proposed, uniforms, offered=None):
    """See `coupled`, with plain numbers; up to the first choice that was not proposed."""
    given = None if offered is None else torch.tensor(offered)
    found = coupled(p, q, torch.tensor(proposed), torch.tensor(uniforms), given).tolist()
    stop = len(proposed) if offered is None else offered
    return found[: next((i for i in range(stop) if found[i] != proposed[i]), stop) + 1]


def law_of_first_choice(p, q, token):
    """Probability of each first choice where `token` was proposed."""
    found = torch.zeros(5, dtype=torch.float64)
    stands = measures(lambda uniform: choices(p, q, [token], [uniform, 0.5])[0] == token)
    found[token] += stands[True]
    if stands[False]:
        for drawn, share in measures(lambda uniform: choices(p, q, [token], [1 - 1e-7, uniform])[0]).items():
            assert drawn != token
            found[drawn] += stands[False] * share
    return found


@examples(60)
@given(target=rows, draft=rows, mode=modes)
def test_one_step_has_exactly_the_targets_distribution(target, draft, mode):
    """Sums over every proposed token, both outcomes of its test and every drawn token."""
    p = distribution(torch.tensor([target, target]), mode)
    q = distribution(torch.tensor([draft]), mode)
    emitted = sum(float(q[0, x]) * law_of_first_choice(p, q, x) for x in range(5) if q[0, x] > 0)
    torch.testing.assert_close(emitted, p[0].double(), atol=2e-5, rtol=1e-4)


@examples(60)
@given(
    target=rows,
    children=st.lists(st.integers(0, 4), min_size=1, max_size=4, unique=True),
    mode=modes,
)
def test_certain_proposals_keep_the_distribution_too(target, children, mode):
    """One or several beside each other, by how much of a uniform number's range gives each outcome."""
    logits = torch.tensor([target] * (len(children) + 1))
    proposal = Proposal(children, parents=(-1,) * len(children))

    class Given(Sampler):
        def uniforms(self, count):
            return torch.full((count,), self.number)

    def first(uniform):
        sampler = Given(mode)
        sampler.number = uniform
        verdict = verify(logits, proposal, sampler)
        return children[verdict.path[0]] if verdict.accepted else verdict.next_token

    found = measures(first)
    for token, share in enumerate(distribution(logits[:1], mode)[0].tolist()):
        assert found[token] == pytest.approx(share, abs=5e-6)


uniforms = st.lists(st.floats(0, 1, width=32, exclude_max=True), min_size=4, max_size=4)


@examples(100)
@given(
    logits=st.lists(rows, min_size=7, max_size=7),
    proposed=st.lists(st.integers(0, 4), min_size=3, max_size=3),
    offered=st.integers(0, 3),
    mode=modes,
    uniforms=uniforms,
)
def test_what_was_not_offered_is_not_judged(logits, proposed, offered, mode, uniforms):
    """Places behind what was proposed hold anything."""
    likely = distribution(torch.tensor(logits), mode)
    p, q = likely[:4], likely[4:]
    fewer = choices(p[: offered + 1], q[:offered], proposed[:offered], [*uniforms[:offered], uniforms[-1]])
    assert choices(p, q, proposed, uniforms, offered) == fewer
    if offered == 3:
        assert choices(p, q, proposed, uniforms) == fewer


@examples(60)
@given(row=rows, mode=modes)
def test_tokens_are_picked_as_often_as_they_are_likely(row, mode):
    likely = distribution(torch.tensor([row]), mode)
    found = measures(lambda uniform: int(pick(7 * likely, torch.tensor([uniform]))))
    for token, share in enumerate(likely[0].tolist()):
        assert found[token] == pytest.approx(share, abs=5e-6)
    assert all(likely[0, token] > 0 for token in found)


def test_a_token_the_target_rules_out_is_never_accepted():
    logits = torch.tensor([[5.0, 4.0, -torch.inf], [0.0, 0.0, 0.0]])
    sampler = Sampler(DecodingMode(temperature=1.0))
    for _ in range(200):
        for q in (torch.tensor([[0.0, 0.0, 1.0]]), None):
            verdict = verify(logits, Proposal([2], q), sampler)
            assert verdict.accepted == 0
            assert verdict.next_token != 2


@examples(80)
@given(row=rows, mode=modes)
def test_probabilities_follow_the_definitions(row, mode):
    found = Sampler(mode).probabilities(torch.tensor([row]))[0]
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-5)
    kept = [i for i in range(5) if found[i] > 0]
    best = torch.softmax(torch.tensor(row) / mode.temperature, dim=-1)
    assert any(best[place] == best.max() for place in kept)  # of what rounding makes alike, any one
    if mode.top_k is not None and len(set(row)) == 5:
        assert len(kept) <= mode.top_k
    # What is kept is at least as likely as what is not, and keeps its proportions.
    plain = torch.softmax(torch.tensor(row) / mode.temperature, dim=-1)
    assert all(plain[i] >= plain[j] - 1e-7 for i in kept for j in range(5) if j not in kept)
    torch.testing.assert_close(found[kept], plain[kept] / plain[kept].sum(), atol=1e-5, rtol=1e-4)


@examples(60)
@given(
    seed=st.integers(0, 10_000),
    scales=st.lists(st.sampled_from([0.0, 0.5, 2.0, 6.0]), min_size=1, max_size=4),
    mode=st.builds(
        DecodingMode,
        temperature=st.just(1.0),
        top_k=st.sampled_from([None, 40, 1500]),
        top_p=st.sampled_from([0.5, 0.9, 0.999]),
    ),
)
def test_a_nucleus_is_the_smallest_set_that_holds_its_share(seed, scales, mode):
    """Of flat and of steep rows side by side, over a vocabulary of which few tokens are looked at first."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(scales), 3000, generator=generator) * torch.tensor(scales)[:, None]
    found = distribution(logits.bfloat16(), mode)  # whose rounding makes many alike
    cut = distribution(logits.bfloat16(), mode.model_copy(update={"top_p": None}))
    for row, likely in zip(found, cut.double(), strict=True):
        kept = row > 0
        least = likely[kept].min()
        assert bool((likely[~kept] < least).all())
        assert float(likely[kept].sum()) >= mode.top_p - 1e-4
        assert float(likely[likely > least].sum()) < mode.top_p + 1e-4
        torch.testing.assert_close(row[kept].double(), likely[kept] / likely[kept].sum())


MODEL = small_model("llama", vocabulary=7)
DRAFT = small_model("llama", vocabulary=7, seed=5, layers=1)


def drafting(backend, how=None):
    return ModelProposer(runtime_by(DRAFT, backend), how or Drafting())


OPENERS = {
    "model": lambda backend, _: drafting(backend),
    "ngram": lambda _, __: NgramProposer(1, 2),
    "early_exit": lambda _, target: EarlyExitProposer(target.first_layers(2)),
    "cascade": lambda backend, _: CascadeProposer(NgramProposer(2, 2), drafting(backend)),
    "hesitant_model": lambda backend, _: drafting(backend, Drafting(0.4)),
    "tree": lambda backend, _: drafting(backend, Drafting(None, 0.05)),
    "suffix_tree": lambda _, __: SuffixProposer(1, 4, 8.0, branch_above=0.05),
    "hesitant_exit": lambda _, target: EarlyExitProposer(target.first_layers(2), Drafting(0.4)),
}


def exact_distribution(
    mode: DecodingMode, prompt: tuple[int, ...], length: int
) -> dict[tuple[int, ...], float]:
    """Probability of every output of `length` tokens, by enumeration with the plain model."""
    sampler = Sampler(mode)
    found = {(): 1.0}
    for _ in range(length):
        longer = {}
        for output, probability in found.items():
            with torch.inference_mode():
                logits = MODEL(torch.tensor([[*prompt, *output]])).logits[0, -1:]
            for token, share in enumerate(sampler.probabilities(logits)[0].tolist()):
                if share > 0:
                    longer[(*output, token)] = probability * share
        found = longer
    return found


# The law is the loop's and the proposers', so the quicker backend draws most.
@pytest.mark.parametrize(
    ("opener", "backend"), [*((opener, "cpp") for opener in OPENERS), ("hesitant_model", "transformers")]
)
@pytest.mark.parametrize(
    "mode", [DecodingMode(temperature=1.0), DecodingMode(temperature=0.8, top_p=0.9, top_k=5)]
)
def test_outputs_are_distributed_as_the_targets_own(opener, backend, mode):
    prompt, length, draws = (3, 5, 3, 5, 3), 3, 500
    exact = exact_distribution(mode, prompt, length)
    target = runtime_by(MODEL, backend)
    proposer = OPENERS[opener](backend, target)
    counts = Counter(
        speculative(target, proposer, Request(prompt, length, mode=mode, seed=seed), 2).token_ids
        for seed in range(draws)
    )
    assert set(counts) <= set(exact)
    # Rare outputs are pooled, as the chi-square test asks.
    common = [output for output, probability in exact.items() if probability * draws >= 5]
    observed = [counts[output] for output in common]
    expected = [exact[output] * draws for output in common]
    observed.append(draws - sum(observed))
    expected.append(draws - sum(expected))
    assert stats.chisquare(observed, expected, sum_check=False).pvalue > 1e-4


@examples(100)
@given(
    rows=st.integers(1, 5),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
)
def test_of_equally_likely_tokens_the_first_is_chosen(rows, seed, dtype):
    """However many rows are looked at together: a baseline looks at one, a verification at several."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-3, 3, (rows, 61), generator=generator).to(getattr(torch, dtype))
    expected = [min(range(61), key=lambda token, row=row: (-float(row[token]), token)) for row in logits]
    assert most_likely(logits) == expected
    assert [most_likely(logits[row : row + 1])[0] for row in range(rows)] == expected


def test_the_same_seed_gives_the_same_output():
    mode = DecodingMode(temperature=1.0)
    target = TransformersRuntime(MODEL)
    first, again, other = (
        autoregressive(target, Request((3, 4), 40, mode=mode, seed=seed)).token_ids for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
