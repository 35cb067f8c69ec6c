"""Trees of tokens: each token is read as behind its own ancestors, the target's path is kept, and nothing else stays."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.catalog.recipe import Recipe, TypicalAcceptance
from draftrank.engine.backends.cpp.decoder import CppDecoder
from draftrank.engine.backends.cpp.runtime import CppRuntime
from draftrank.engine.backends.transformers.runtime import TransformersEagleRuntime, TransformersRuntime
from draftrank.engine.loop import Request, autoregressive, speculative
from draftrank.engine.proposer import Proposal
from draftrank.engine.proposers import drafting
from draftrank.engine.proposers.draft_model import ModelProposer
from draftrank.engine.proposers.drafting import MAX_RUNNERS_UP, Drafting, draft_tokens
from draftrank.engine.sampling import Sampler, distribution
from draftrank.engine.token_tree import TokenTree
from draftrank.engine.verification import verify
from draftrank.models.architecture import Architecture
from exact_law import Choices, Following
from examples import examples
from models import ARCHITECTURES, own_logits, small_eagle3, small_model, sometimes_alike
from runtimes import path_to, runtime_by

MODELS = {name: small_model(name) for name in ARCHITECTURES}
GREEDY = Sampler(DecodingMode())


def runtimes(name):
    yield TransformersRuntime(MODELS[name])
    if CppDecoder.fits(MODELS[name]):
        yield CppRuntime(copy.deepcopy(MODELS[name]))


RUNTIMES = [(name, runtime) for name in ARCHITECTURES for runtime in runtimes(name)]
named = pytest.mark.parametrize(
    ("name", "runtime"), RUNTIMES, ids=[f"{name}-{runtime.name}" for name, runtime in RUNTIMES]
)


@st.composite
def trees(draw):
    """Tokens and parents of a tree behind a root, with no two equal children."""
    parents = [draw(st.integers(-1, place - 1)) for place in range(draw(st.integers(1, 9)))]
    tokens, used = [], {}
    for parent in parents:
        token = draw(st.integers(3, 60).filter(lambda one, p=parent: one not in used.get(p, ())))
        used.setdefault(parent, set()).add(token)
        tokens.append(token)
    return tokens, tuple(parents)


def branch(tokens, parents, place):
    return [tokens[one] for one in path_to(parents, place)]


@named
@examples(20)
@given(
    prompt=st.lists(st.integers(3, 60), max_size=20),
    tree=trees(),
    more=st.lists(st.integers(3, 60), min_size=1, max_size=4),
    data=st.data(),
)
def test_every_token_is_read_behind_its_own_ancestors(name, runtime, prompt, tree, more, data):
    """Also beyond a sliding window, and with what is read after a path was committed."""
    tokens, parents = tree
    runtime.reset()
    if prompt:
        runtime.forward(prompt)
    root = 7
    logits = runtime.forward((root, *tokens), tree=TokenTree.behind(parents))
    assert logits.shape == (1 + len(tokens), 61)
    for place in range(-1, len(tokens)):
        text = [*prompt, root, *branch(tokens, parents, place)]
        torch.testing.assert_close(
            logits[place + 1], own_logits(MODELS[name], text)[-1], atol=3e-4, rtol=1e-3
        )
    path = path_to(parents, data.draw(st.integers(-1, len(tokens) - 1)))
    runtime.commit(len(prompt), (0, *(place + 1 for place in path)))
    held = [*prompt, root, *(tokens[place] for place in path)]
    assert runtime.length == len(held)
    found = runtime.forward(more)
    torch.testing.assert_close(
        found, own_logits(MODELS[name], [*held, *more])[-len(more) :], atol=3e-4, rtol=1e-3
    )


@named
def test_features_are_those_of_the_path(name, runtime):
    runtime = runtime_by(small_model(name), runtime.name)
    runtime.keep_hidden_states()
    runtime.forward([5, 6])
    runtime.forward((7, 8, 9, 10, 11), tree=TokenTree.behind((-1, -1, 0, 1)))
    runtime.commit(2, (0, 2, 4))
    with torch.inference_mode():
        states = Architecture.of(MODELS[name]).hidden_states(MODELS[name], torch.tensor([[5, 6, 7, 9, 11]]))
    torch.testing.assert_close(runtime.hidden_states(), states[0, 2:], atol=3e-4, rtol=1e-3)


@examples(100)
@given(tree=trees(), seed=st.integers(0, 10_000))
def test_verification_walks_as_far_as_the_targets_choices_were_proposed(tree, seed):
    tokens, parents = tree
    logits = torch.randn(len(tokens) + 1, 61, generator=torch.Generator().manual_seed(seed))
    for place, parent in enumerate(parents):  # make acceptance likely
        if (seed + place) % 2:
            logits[parent + 1, tokens[place]] = 9.0 + place
    verdict = verify(logits, Proposal(tokens, parents=parents), GREEDY)
    place = -1
    for step in verdict.path:
        assert parents[step] == place
        assert tokens[step] == int(logits[place + 1].argmax())
        place = step
    assert verdict.accepted == len(verdict.path)
    assert verdict.next_token == int(logits[place + 1].argmax())
    children = [tokens[child] for child, parent in enumerate(parents) if parent == place]
    assert verdict.next_token not in children


@examples(60)
@given(tokens=st.lists(st.integers(3, 60), min_size=1, max_size=8), seed=st.integers(0, 1000))
def test_a_chain_written_as_a_tree_is_judged_alike(tokens, seed):
    logits = torch.randn(len(tokens) + 1, 61, generator=torch.Generator().manual_seed(seed))
    for place in range(seed % (len(tokens) + 1)):
        logits[place, tokens[place]] = 9.0
    chain = verify(logits, Proposal(tokens), GREEDY)
    tree = verify(logits, Proposal(tokens, parents=tuple(range(-1, len(tokens) - 1))), GREEDY)
    assert (chain.accepted, chain.next_token) == (tree.accepted, tree.next_token)
    assert tree.path == tuple(range(tree.accepted))


@examples(60)
@given(
    parents=st.lists(st.integers(-1, 5), min_size=1, max_size=6),
    rows=st.lists(st.lists(st.floats(-4, 4, width=32), min_size=4, max_size=4), min_size=7, max_size=7),
    mode=st.sampled_from(
        [
            DecodingMode(temperature=0.8),
            DecodingMode(temperature=1.3, top_k=2),
            DecodingMode(temperature=1.0, top_p=0.7),
        ]
    ),
    data=st.data(),
)
def test_whatever_tree_was_proposed_each_text_is_as_probable_as_the_target_says(parents, rows, mode, data):
    """By enumeration; and each path stands as often as the target takes it, which no lossless rule can exceed."""
    parents = tuple(min(parent, place - 1) for place, parent in enumerate(parents))
    tokens, used = [], {}
    for parent in parents:
        left = [token for token in range(4) if token not in used.get(parent, ())]
        assume(left)
        tokens.append(data.draw(st.sampled_from(left)))
        used.setdefault(parent, []).append(tokens[-1])
    logits = torch.tensor(rows[: len(tokens) + 1])
    likely = distribution(logits, mode).double()
    choices, total, stands = Choices(), 0.0, [0.0] * len(tokens)
    while True:
        verdict = verify(logits, Proposal(tokens, parents=parents), Following(mode, choices))
        path = list(verdict.path)
        assert path == path_to(parents, path[-1] if path else -1)
        assert verdict.next_token not in used.get(path[-1] if path else -1, ())
        behind = [0, *(place + 1 for place in path)]
        expected = math.prod(
            float(likely[row, token])
            for row, token in zip(
                behind, [*(tokens[place] for place in path), verdict.next_token], strict=True
            )
        )
        assert choices.probability == pytest.approx(expected, rel=1e-5)
        total += expected
        for place in path:
            stands[place] += expected
        if not choices.advance():
            break
    assert total == pytest.approx(1.0, abs=1e-5)
    for place in range(len(tokens)):
        taken = path_to(parents, place)
        own = math.prod(float(likely[parents[one] + 1, tokens[one]]) for one in taken)
        assert stands[place] == pytest.approx(own, abs=1e-5)


def test_typical_acceptance_judges_no_trees():
    logits, proposal = torch.zeros(3, 61), Proposal([5, 6], parents=(-1, -1))
    with pytest.raises(ValueError, match="typical acceptance judges no trees"):
        verify(logits, proposal, GREEDY, TypicalAcceptance())


@pytest.mark.parametrize("count", [1, 3, 6, 20])
@pytest.mark.parametrize("branch_above", [0.005, 0.05, 0.3])
@pytest.mark.parametrize("stop_below", [None, 0.02, 0.2])
def test_the_most_probable_tokens_are_proposed(count, branch_above, stop_below, monkeypatch):
    """By brute force: behind all that is gone on from, the most likely token of each level and what is probable enough."""
    monkeypatch.setattr(drafting, "MAX_EXPANDED", 1000)
    model, prompt = MODELS["llama"], [5, 9, 11, 4]
    how = Drafting(stop_below, branch_above)
    proposal = draft_tokens(TransformersRuntime(model), GREEDY, prompt, count, how)
    found, level = {}, {(): 1.0}
    for _ in range(count):
        behind = {}
        for text, path in level.items():
            shares = own_logits(model, [*prompt, *text])[-1].softmax(-1)
            for token in shares.argsort(descending=True)[: MAX_RUNNERS_UP + 1].tolist():
                behind[*text, token] = path * float(shares[token])
        best = max(behind.values())
        behind = {text: path for text, path in behind.items() if path in (best, max(path, branch_above))}
        found |= behind
        enough = branch_above if stop_below is None else stop_below
        level = {
            text: path
            for text, path in behind.items()
            if path >= enough or (stop_below is None and path == best)
        }
        # what is not among the most probable now never will be, nor what follows it
        level = {
            text: path
            for text, path in level.items()
            if sum(path < other for other in found.values()) < count
        }
        if not level:
            break
    expected = sorted(found.values(), reverse=True)[:count]
    parents = proposal.parents or tuple(range(-1, len(proposal.tokens) - 1))
    proposed = [
        found[tuple(branch(proposal.tokens, parents, place))] for place in range(len(proposal.tokens))
    ]
    assert len(proposed) == len(set(zip(proposal.tokens, parents, strict=True)))
    torch.testing.assert_close(
        torch.tensor(sorted(proposed, reverse=True)), torch.tensor(expected), atol=1e-5, rtol=1e-3
    )
    assert 1 <= proposal.forwards <= len(proposal.tokens)


@named
@examples(20)
@given(prompt=st.lists(st.integers(3, 60), max_size=20), tree=trees(), cuts=st.sets(st.integers(1, 9)))
def test_a_tree_that_is_fed_in_parts_is_read_as_if_fed_at_once(name, runtime, prompt, tree, cuts):
    """Also beyond a sliding window; and any path of it can be kept."""
    tokens, parents = tree
    shape, fed = TokenTree.behind(parents), (7, *tokens)
    rows = []
    runtime.reset()
    if prompt:
        runtime.forward(prompt)
    ends = sorted({cut for cut in cuts if cut < len(fed)} | {len(fed)})
    for start, end in zip([0, *ends], ends, strict=False):
        if start == 0 and end == 1:
            rows.append(runtime.forward(fed[:1]).clone())  # a root alone is the end of a chain
        else:
            rows.append(runtime.forward(fed[start:end], tree=TokenTree(shape.parents[:end])).clone())
    for place in range(-1, len(tokens)):
        text = [*prompt, 7, *branch(tokens, parents, place)]
        torch.testing.assert_close(
            torch.cat(rows)[place + 1], own_logits(MODELS[name], text)[-1], atol=3e-4, rtol=1e-3
        )
    if len(fed) > 1:
        path = path_to(parents, len(tokens) - 1)
        runtime.commit(len(prompt), (0, *(one + 1 for one in path)))
        held = [*prompt, 7, *(tokens[one] for one in path)]
        torch.testing.assert_close(
            runtime.forward([5, 6]), own_logits(MODELS[name], [*held, 5, 6])[-2:], atol=3e-4, rtol=1e-3
        )


def test_a_head_reads_the_state_of_its_tokens_parent():
    """In a tree that grows level by level each token reads its own chain's state, whatever stands beside it."""
    reader = small_eagle3()
    torch.manual_seed(1)
    features = torch.randn(4, 32)
    tokens, parents = (7, 8, 9, 10, 11, 12), (-1, 0, 0, 1, 2, 2)
    tree, chain = TransformersEagleRuntime(reader), TransformersEagleRuntime(reader)
    tree.offer(features)
    tree.forward((3, 4, 5, tokens[0]), keep=1)
    rows = [
        *tree.forward(tokens[1:3], tree=TokenTree(parents[:3])).clone(),
        *tree.forward(tokens[3:], tree=TokenTree(parents)).clone(),
    ]
    for place in range(1, len(tokens)):
        chain.reset()
        chain.offer(features)
        chain.forward((3, 4, 5, tokens[0]), keep=1)
        for token in branch(tokens, parents, place)[1:]:
            last = chain.forward((token,))
        torch.testing.assert_close(rows[place - 1], last[0], atol=3e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ARCHITECTURES)
@examples(10)
@given(prompt=st.lists(st.integers(3, 60), min_size=1, max_size=12), count=st.integers(1, 9))
def test_a_draft_keeps_what_it_read_of_what_stands(name, prompt, count):
    """After any step its cache holds a beginning of the text, read as that alone."""
    model = sometimes_alike(small_model(name))
    draft = TransformersRuntime(model)
    proposer = ModelProposer(draft, Drafting(None, 0.02))
    accept, kept = proposer.accept, []

    def listen(accepted):
        accept(accepted)
        kept.append(draft.length)

    proposer.accept = listen
    found = speculative(TransformersRuntime(MODELS[name]), proposer, Request(tuple(prompt), 24), count)
    text = [*prompt, *found.token_ids]
    assert all(len(prompt) <= length <= len(text) for length in kept)
    draft.rollback(draft.length - kept[-1])
    expected = own_logits(model, [*text[: kept[-1]], 5])[-1]
    torch.testing.assert_close(draft.forward((5,))[0], expected, atol=3e-4, rtol=1e-3)


def test_a_tree_accepts_at_least_what_its_chain_does_and_more_where_runners_up_are_right():
    target = TransformersRuntime(MODELS["llama"])
    near = sometimes_alike(small_model("llama"), 0.3)
    steps = {"chain": 0, "tree": 0}
    for start in range(3, 40, 3):
        request = Request((5, 9, start), 30)
        expected = autoregressive(target, request)
        for kind, how in (("chain", Drafting()), ("tree", Drafting(None, 0.01))):
            # as many tokens deep, and room for runners-up
            k = 3 if kind == "chain" else 12
            proposer = ModelProposer(TransformersRuntime(near), how)
            found = speculative(target, proposer, request, k)
            assert found.token_ids == expected.token_ids
            steps[kind] += found.steps
    assert steps["tree"] < steps["chain"]


def test_recipes_say_what_cannot_branch():
    fields = {
        "schema_version": 1,
        "id": "one",
        "target": "tiny",
        "title": "One",
        "authors": [{"name": "Test"}],
        "draft": {"kind": "ngram"},
        "speculate": {"num_speculative_tokens": 3, "branch_above_probability": 0.1},
    }
    with pytest.raises(ValueError, match=r"speculate\.branch_above_probability asks for probabilities"):
        Recipe.model_validate_json(json.dumps(fields))
    fields["draft"] = {"kind": "early_exit", "layers": 2}
    Recipe.model_validate_json(json.dumps(fields))
    fields["speculate"]["typical_acceptance"] = {}
    with pytest.raises(ValueError, match="which typical_acceptance cannot judge"):
        Recipe.model_validate_json(json.dumps(fields))
