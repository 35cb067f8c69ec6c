"""The engine's laws, over architectures, proposers, lengths and adversarial drafts."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.engine.backends.transformers.runtime import TransformersEagleRuntime, TransformersRuntime
from draftrank.engine.loop import ContextOverflowError, Request, autoregressive, speculative
from draftrank.engine.proposers.cascade import CascadeProposer
from draftrank.engine.proposers.draft_model import ModelProposer
from draftrank.engine.proposers.drafting import PLAIN, Drafting
from draftrank.engine.proposers.eagle import EagleProposer
from draftrank.engine.proposers.early_exit import EarlyExitProposer
from draftrank.engine.proposers.ngram import NgramProposer
from draftrank.engine.proposers.suffix import SuffixProposer
from draftrank.engine.sampling import Sampler
from draftrank.models.architecture import Architecture
from examples import examples
from models import ARCHITECTURES, small_eagle3, small_model, sometimes_alike
from proposers import ScriptedProposer
from runtimes import BACKENDS, runtime_by

TARGETS = {name: small_model(name) for name in ARCHITECTURES}
# A draft that agrees sometimes: the target with a few weights moved.
NEAR = {name: sometimes_alike(small_model(name)) for name in ARCHITECTURES}
STRANGERS = {name: small_model(name, seed=9, layers=1) for name in ARCHITECTURES}

EAGLE3 = small_eagle3()
TRIMMED_EAGLE3 = small_eagle3(kept=40, norm_before_residual=True)


def eagle3(target, drafting=PLAIN, model=EAGLE3):
    return EagleProposer(target, TransformersEagleRuntime(model), drafting)


TREE = Drafting(None, 0.02)
PROPOSERS = {
    "equal": lambda name, _: ModelProposer(TransformersRuntime(TARGETS[name])),
    "near": lambda name, _: ModelProposer(TransformersRuntime(NEAR[name])),
    "stranger": lambda name, _: ModelProposer(TransformersRuntime(STRANGERS[name])),
    "ngram": lambda _, __: NgramProposer(1, 3),
    "trusting": lambda _, __: NgramProposer(1, 3, 1.5),
    "suffix": lambda _, __: SuffixProposer(1, 8, 2.0, 0.05),
    "suffix tree": lambda _, __: SuffixProposer(1, 8, 64.0, branch_above=0.05),
    "early_exit": lambda _, target: EarlyExitProposer(target.first_layers(2)),
    "cascade": lambda name, _: CascadeProposer(
        NgramProposer(2, 3), ModelProposer(TransformersRuntime(NEAR[name]))
    ),
    "cascade_suffix": lambda name, _: CascadeProposer(
        SuffixProposer(2, 8, 2.0, 0.4), ModelProposer(TransformersRuntime(NEAR[name]))
    ),
    "eagle3": lambda _, target: eagle3(target),
    "eagle3_trimmed": lambda _, target: eagle3(target, Drafting(0.4), TRIMMED_EAGLE3),
    "tree_eagle3": lambda _, target: eagle3(target, TREE),
    "cascade_eagle3": lambda _, target: CascadeProposer(NgramProposer(2, 3), eagle3(target)),
    "tree": lambda name, _: ModelProposer(TransformersRuntime(NEAR[name]), TREE),
    "tree_exit": lambda _, target: EarlyExitProposer(target.first_layers(2), TREE),
    "tree_cascade": lambda name, _: CascadeProposer(
        NgramProposer(2, 3), ModelProposer(TransformersRuntime(NEAR[name]), Drafting(0.5, 0.02))
    ),
    "hesitant": lambda name, _: ModelProposer(TransformersRuntime(NEAR[name]), Drafting(0.6)),
    "hesitant_exit": lambda _, target: EarlyExitProposer(target.first_layers(2), Drafting(0.6)),
}

prompts = st.lists(st.integers(3, 60), min_size=1, max_size=30).map(tuple)
stops = st.frozensets(st.integers(3, 60), max_size=6)


def check_sums(decoding, k, limit, *, copies=False):
    tokens = len(decoding.token_ids)
    accepted = sum(i * n for i, n in enumerate(decoding.accept_histogram))
    assert 1 <= tokens <= limit
    assert tokens - 1 == decoding.steps + accepted
    assert sum(decoding.accept_histogram) == decoding.steps
    assert len(decoding.accept_histogram) == k + 1
    assert 1.0 <= decoding.acceptance_length <= k + 1
    assert accepted <= decoding.proposed <= k * decoding.steps
    assert len(decoding.proposal_sizes) == k + 1
    assert sum(decoding.proposal_sizes) == decoding.steps
    verified = sum(size * steps for size, steps in enumerate(decoding.proposal_sizes))
    assert decoding.proposed <= verified
    if copies:
        assert decoding.draft_forwards <= verified
    else:
        assert decoding.draft_forwards in (0, verified)
    # The i-th token is offered at least as often as it is accepted, and never more often than its predecessor.
    for position, offers in enumerate(decoding.offered):
        assert offers >= sum(decoding.accept_histogram[position + 1 :])
        assert offers <= (decoding.steps if position == 0 else decoding.offered[position - 1])


@pytest.mark.parametrize("proposer", PROPOSERS)
@pytest.mark.parametrize("name", ARCHITECTURES)
@examples(3)
@given(prompt=prompts, k=st.integers(1, 8), limit=st.integers(1, 40), stop=stops)
def test_greedy_speculation_equals_greedy_decoding(name, proposer, prompt, k, limit, stop):
    target = TransformersRuntime(TARGETS[name])
    request = Request(prompt, limit, stop)
    expected = autoregressive(target, request)
    found = speculative(target, PROPOSERS[proposer](name, target), request, k)
    assert found.token_ids == expected.token_ids
    assert found.finish == expected.finish
    check_sums(found, k, limit, copies=proposer.startswith(("cascade", "tree")))
    check_sums(expected, 0, limit)
    assert expected.acceptance_length == 1.0


CERTAIN = ("ngram", "trusting", "suffix", "suffix tree", "tree_eagle3", "tree", "tree_exit", "tree_cascade")


@pytest.mark.parametrize("proposer", CERTAIN)
@pytest.mark.parametrize("name", ["llama", "gemma3"])
@examples(4)
@given(
    prompt=prompts,
    k=st.integers(1, 8),
    limit=st.integers(1, 40),
    stop=stops,
    mode=st.sampled_from([DecodingMode(temperature=0.8), DecodingMode(temperature=1.2, top_k=30, top_p=0.9)]),
    seed=st.integers(0, 1000),
)
def test_with_its_random_numbers_a_target_says_what_it_says_alone(
    name, proposer, prompt, k, limit, stop, mode, seed
):
    """Whatever is proposed with certainty. The kernels give the same bits however tokens are divided, so no draw is close."""
    target = runtime_by(TARGETS[name], "cpp")
    request = Request(prompt, limit, stop, mode, seed)
    expected = autoregressive(target, request)
    found = speculative(target, PROPOSERS[proposer](name, target), request, k)
    assert found.token_ids == expected.token_ids
    assert found.finish == expected.finish
    check_sums(found, k, limit, copies=proposer.startswith("tree"))


@examples(30)
@given(
    prompt=prompts,
    k=st.integers(1, 9),
    limit=st.integers(1, 40),
    stop=stops,
    error_rate=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_any_adversarial_draft_leaves_the_output_alone(prompt, k, limit, stop, error_rate, seed):
    target = TransformersRuntime(TARGETS["llama"])
    request = Request(prompt, limit, stop)
    expected = autoregressive(target, request)
    proposer = ScriptedProposer(expected.token_ids, len(prompt), error_rate, seed)
    found = speculative(target, proposer, request, k)
    assert found.token_ids == expected.token_ids
    check_sums(found, k, limit)
    assert target.length <= len(prompt) + limit
    assert all(1 <= asked <= k for asked in proposer.asked)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("k", [1, 3, 5])
def test_a_draft_equal_to_its_target_accepts_everything(name, k):
    target = TransformersRuntime(TARGETS[name])
    limit = 1 + 4 * (k + 1)
    found = speculative(
        target, ModelProposer(TransformersRuntime(TARGETS[name])), Request((5, 9, 11), limit), k
    )
    assert found.accept_histogram == (0,) * k + (4,)
    assert found.acceptance_length == k + 1
    assert found.draft_forwards == 4 * k


@examples(20)
@given(prompt=prompts, k=st.integers(1, 8), limit=st.integers(1, 40), stop=stops)
def test_an_equal_drafts_every_judged_token_is_accepted(prompt, k, limit, stop):
    """Also where an accepted stop token ends the output in the middle of a proposal."""
    target = TransformersRuntime(TARGETS["llama"])
    found = speculative(
        target, ModelProposer(TransformersRuntime(TARGETS["llama"])), Request(prompt, limit, stop), k
    )
    reached = [sum(found.accept_histogram[i + 1 :]) for i in range(k)]
    assert list(found.offered) == reached
    assert found.proposed == sum(reached)


def test_a_cascade_draft_copies_where_it_can_and_asks_its_model_where_not():
    """The model catches up on copied tokens: it proposes what it would after reading everything."""
    prompt = (5, 9, 11, 4, 7, 5, 9, 11)
    model = ModelProposer(TransformersRuntime(NEAR["llama"]))
    cascade = CascadeProposer(NgramProposer(2, 3), model)
    sampler = Sampler(DecodingMode())
    cascade.begin(prompt, sampler, 64)
    copied = cascade.propose([*prompt, 4], 3)
    assert (copied.tokens, copied.forwards) == ([7, 5, 9], 0)
    cascade.accept(copied.tokens[:2])
    context = [*prompt, 4, 7, 5, 30]
    asked = cascade.propose(context, 3)
    assert asked.forwards == 3
    alone = ModelProposer(TransformersRuntime(NEAR["llama"]))
    alone.begin(context[:-1], sampler, 64)
    assert asked.tokens == alone.propose(context, 3).tokens
    cascade.accept(asked.tokens[:1])
    context += [asked.tokens[0], 31]
    alone.begin(context[:-1], sampler, 64)
    assert cascade.propose(context, 2).tokens == alone.propose(context, 2).tokens


def test_the_model_of_a_cascade_draft_may_propose_fewer_tokens():
    sampler = Sampler(DecodingMode())
    cascade = CascadeProposer(NgramProposer(2, 3), ModelProposer(TransformersRuntime(NEAR["llama"])), 2)
    prompt = (5, 9, 11, 4, 7, 5, 9, 11)
    cascade.begin(prompt, sampler, 64)
    assert len(cascade.propose([*prompt, 4], 3).tokens) == 3
    cascade.accept([])
    assert len(cascade.propose([*prompt, 30], 3).tokens) == 2
    cascade.accept([])
    assert len(cascade.propose([*prompt, 30, 31], 1).tokens) == 1


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("copies", [False, True], ids=["alone", "cascade"])
@examples(5)
@given(prompt=prompts, k=st.integers(1, 6), limit=st.integers(2, 30))
def test_every_token_is_read_with_the_targets_state_before_it(name, copies, prompt, k, limit):
    target = TransformersRuntime(TARGETS[name])
    draft = TransformersEagleRuntime(EAGLE3)
    proposer = EagleProposer(target, draft)
    offered = {}
    offer = draft.offer

    def listen(features):
        for place, row in enumerate(features, start=draft.length):
            assert place not in offered or torch.equal(offered[place], row)
            offered[place] = row
        offer(features)

    draft.offer = listen
    both = CascadeProposer(NgramProposer(1, 2), proposer) if copies else proposer
    found = speculative(target, both, Request(prompt, limit), k)
    text = torch.tensor([[*prompt, *found.token_ids]])
    with torch.inference_mode():
        shape = Architecture.of(TARGETS[name])
        states = draft.reduced(shape.states_of_layers(TARGETS[name], text, draft.layers)[0])
    assert set(range(len(prompt))) <= set(offered) == set(range(len(offered)))
    for place, row in offered.items():
        expected = states[place - 1] if place else torch.zeros_like(row)
        torch.testing.assert_close(row, expected, atol=1e-4, rtol=1e-4)


def test_a_hesitant_draft_stops_after_the_token_it_doubts():
    """Every proposed token but the last of a step has at least the asked probability."""
    target = TransformersRuntime(TARGETS["llama"])
    prompt, k, threshold = (5, 9, 11, 4), 6, 0.2
    free = ModelProposer(TransformersRuntime(NEAR["llama"]))
    wary = ModelProposer(TransformersRuntime(NEAR["llama"]), Drafting(threshold))
    sampler = Sampler(DecodingMode())
    lengths = set()
    for start in range(3, 50):
        context = [*prompt, start]
        for proposer in (free, wary):
            proposer.begin(prompt, sampler, 64)
        everything, some = free.propose(context, k).tokens, wary.propose(context, k)
        assert some.tokens == everything[: len(some.tokens)]
        assert some.forwards == len(some.tokens) >= 1
        logits = NEAR["llama"](torch.tensor([[*context, *everything]])).logits[0, len(context) - 1 :]
        sure = torch.softmax(logits, -1).max(-1).values >= threshold
        assert all(sure[: len(some.tokens) - 1])
        assert len(some.tokens) == k or not sure[len(some.tokens) - 1]
        lengths.add(len(some.tokens))
    assert len(lengths) > 1
    request = Request(prompt, 40)
    few = speculative(target, ModelProposer(TransformersRuntime(NEAR["llama"]), Drafting(0.999)), request, k)
    all_ = speculative(target, ModelProposer(TransformersRuntime(NEAR["llama"]), Drafting(0.001)), request, k)
    assert few.token_ids == all_.token_ids
    assert few.proposed < all_.proposed
    assert all_.proposal_sizes[k] > 0


def test_the_last_step_asks_for_no_more_than_the_limit_holds():
    target = TransformersRuntime(TARGETS["llama"])
    request = Request((5, 9, 11), 1 + 4 + 2)
    expected = autoregressive(target, request)
    proposer = ScriptedProposer(expected.token_ids, 3, 0.0)
    found = speculative(target, proposer, request, 3)
    assert found.token_ids == expected.token_ids
    assert found.accept_histogram == (0, 1, 0, 1)
    assert proposer.asked == [3, 1]


def test_a_stop_token_inside_the_accepted_run_ends_the_output_there():
    target = TransformersRuntime(TARGETS["llama"])
    free = autoregressive(target, Request((5, 9, 11), 30)).token_ids
    index = next(i for i in range(3, 30) if free[i] not in free[:i])
    request = Request((5, 9, 11), 30, frozenset({free[index], 2}))
    proposer = ScriptedProposer(free, 3, 0.0)
    found = speculative(target, proposer, request, 30)
    assert found.token_ids == free[: index + 1]
    assert found.finish == "stop"
    # One step emitted all; its last token stands for the bonus, so one fewer counts as accepted.
    assert found.steps == 1
    assert found.accept_histogram[index - 1] == 1


def test_a_stop_token_at_once_takes_no_step():
    target = TransformersRuntime(TARGETS["llama"])
    first = autoregressive(target, Request((5,), 2)).token_ids[0]
    found = speculative(target, NgramProposer(1, 2), Request((5,), 9, frozenset({first})), 3)
    assert (found.token_ids, found.steps, found.acceptance_length) == ((first,), 0, 1.0)


def test_overflow_is_refused_before_anything_is_decoded():
    target = TransformersRuntime(small_model("llama", window=32))
    with pytest.raises(ContextOverflowError, match="30 prompt tokens and 8 new ones"):
        autoregressive(target, Request(tuple(range(3, 33)), 8))
    with pytest.raises(ContextOverflowError, match="target's context window of 32"):
        speculative(target, NgramProposer(1, 2), Request((5,) * 30, 8), 2)
    assert target.length == 0


def short_sighted(window):
    """GPT-2 with few learned positions: to read behind them is an error of its own embedding. With the target's other
    weights it proposes what the target says."""
    model = copy.deepcopy(TARGETS["gpt2"])
    model.transformer.wpe = torch.nn.Embedding.from_pretrained(model.transformer.wpe.weight[:window].clone())
    model.config.n_positions = window
    return model


def short_sighted_head(window):
    """An EAGLE-3 head that must not read positions behind its window: tokens of a tree may share one."""
    model = copy.deepcopy(EAGLE3)
    model.config.max_position_embeddings = window
    head = TransformersEagleRuntime(model)
    forward = head.forward

    def within(tokens, keep=None, tree=None):
        root = head.length - (0 if tree is None else len(tree.parents) - len(tokens))
        assert root + (len(tokens) if tree is None else max(tree.depths) + 1) <= window
        return forward(tokens, keep, tree)

    head.forward = within
    return head


@pytest.mark.parametrize("window", [1, 9, 10, 11, 12, 20, 256])
@pytest.mark.parametrize("k", [1, 4])
def test_a_draft_proposes_as_far_as_its_window_reaches_and_then_nothing(window, k):
    target, request = TransformersRuntime(TARGETS["gpt2"]), Request(tuple(range(3, 13)), 20)
    expected = autoregressive(target, request)
    found = speculative(target, ModelProposer(TransformersRuntime(short_sighted(window))), request, k)
    assert found.token_ids == expected.token_ids
    sizes, held = [0] * (k + 1), 11  # every proposal is the target's own token, so each step takes it whole
    while held < 30:
        # A proposal of n tokens is read up to the last but one, behind all that is held.
        size = next(n for n in range(k, -1, -1) if held + n < 30 and (n == 0 or held + n - 1 <= window))
        sizes[size] += 1
        held += size + 1
    assert found.proposal_sizes == tuple(sizes)
    assert found.proposed == found.draft_forwards == sum(n * steps for n, steps in enumerate(sizes))


@examples(20)
@given(
    prompt=st.lists(st.integers(3, 60), min_size=1, max_size=30).map(tuple),
    kind=st.sampled_from(["model", "tree", "eagle3", "tree_eagle3", "cascade", "cascade_eagle3"]),
    window=st.integers(1, 40),
    k=st.integers(1, 6),
    mode=st.sampled_from([DecodingMode(), DecodingMode(temperature=0.8, seed=3)]),
)
@example((3,), "tree_eagle3", 3, 2, DecodingMode())
def test_no_draft_is_led_behind_its_window_and_its_next_text_is_read_as_ever(prompt, kind, window, k, mode):
    target = TransformersRuntime(TARGETS["gpt2"])

    def proposer(window):
        drafting = TREE if "tree" in kind else Drafting()
        own = (
            EagleProposer(target, short_sighted_head(window), drafting)
            if "eagle3" in kind
            else ModelProposer(TransformersRuntime(short_sighted(window)), drafting)
        )
        return CascadeProposer(NgramProposer(2, 3), own) if "cascade" in kind else own

    short = proposer(window)
    request = Request(prompt, 12, mode=mode)
    found = speculative(target, short, request, k)
    if mode.greedy:
        assert found.token_ids == autoregressive(target, request).token_ids
    after = Request((5, 6), 8, mode=mode)  # fits windows from 10 on, so that both drafts do the same
    if window >= 10:
        again = speculative(target, proposer(256), after, k)
        assert speculative(target, short, after, k).proposal_sizes == again.proposal_sizes


def test_other_backends_keep_to_the_window_too():
    target, request = TransformersRuntime(TARGETS["llama"]), Request(tuple(range(3, 13)), 20)
    sizes = []
    for made in BACKENDS:
        draft = ModelProposer(runtime_by(small_model("llama", window=16), made))
        found = speculative(target, draft, request, 3)
        assert found.token_ids == autoregressive(target, request).token_ids
        sizes.append(found.proposal_sizes)
    assert sizes[0] == sizes[1] == (12, 0, 1, 1)


def test_the_whole_window_can_be_used():
    target = TransformersRuntime(small_model("llama", window=32))
    request = Request((5,) * 20, 12)
    expected = autoregressive(target, request)
    draft = ModelProposer(TransformersRuntime(small_model("llama", window=32, seed=3)))
    assert speculative(target, draft, request, 6).token_ids == expected.token_ids


def test_an_empty_prompt_is_refused():
    with pytest.raises(ContextOverflowError, match="empty"):
        autoregressive(TransformersRuntime(TARGETS["llama"]), Request((), 8))


@examples(60)
@given(
    context=st.lists(st.integers(0, 3), min_size=2, max_size=40),
    more=st.lists(st.integers(0, 3), max_size=8),
    count=st.integers(1, 6),
    sizes=st.tuples(st.integers(1, 3), st.integers(0, 2)),
)
def test_ngram_finds_the_most_recent_longest_match(context, more, count, sizes):
    smallest, largest = sizes[0], sizes[0] + sizes[1]
    proposer = NgramProposer(smallest, largest)
    proposer.begin(context, None, 0)
    proposer.propose(context, count)
    whole = context + more
    found = proposer.propose(whole, count).tokens

    def brute_force() -> list[int]:
        for size in range(largest, smallest - 1, -1):
            for end in range(len(whole) - 1, size - 1, -1):
                if len(whole) > size and whole[end - size : end] == whole[-size:]:
                    return whole[end : end + count]
        return []

    assert found == brute_force()


@examples(100)
@given(
    context=st.lists(st.integers(0, 2), min_size=2, max_size=40),
    count=st.integers(1, 9),
    trust=st.sampled_from([0.5, 1.0, 1.5, 3.0]),
)
def test_a_longer_match_is_trusted_for_more_tokens(context, count, trust):
    plain, trusting = NgramProposer(1, 3), NgramProposer(1, 3, trust)
    for proposer in (plain, trusting):
        proposer.begin(context, None, 0)
    all_of_it = plain.propose(context, len(context)).tokens
    found = trusting.propose(context, count).tokens
    assert found == all_of_it[: len(found)]
    if all_of_it:
        end = len(context) - len(all_of_it)
        matched = next(n for n in range(end + 1) if n == end or context[end - 1 - n] != context[-1 - n])
        assert len(found) == min(count, len(all_of_it), math.ceil(trust * matched))
