"""Each proposal equals that of a fresh cache: whatever stood before, a draft's state is what its context says.

Acceptance falls when it is not, while the output stays right, so no other law notices.
"""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.engine.backends.registry import open_eagle_runtime, open_runtime
from draftrank.engine.fresh_proposal import fresh_gap
from draftrank.engine.loop import Request, speculative
from draftrank.engine.proposers.cascade import CascadeProposer
from draftrank.engine.proposers.draft_model import ModelProposer
from draftrank.engine.proposers.drafting import Drafting
from draftrank.engine.proposers.eagle import EagleProposer
from draftrank.engine.proposers.early_exit import EarlyExitProposer
from draftrank.engine.proposers.ngram import NgramProposer
from draftrank.engine.proposers.suffix import SuffixProposer
from draftrank.engine.sampling import Sampler
from draftrank.models.forms import quantize_linear_layers
from examples import examples
from models import ARCHITECTURES, small_eagle3, small_model, sometimes_alike
from proposers import Constant, StaleProposer, Steps, check_fresh
from runtimes import BACKENDS

GREEDY = Sampler(DecodingMode())
STOP, BRANCH = 0.4, 0.03
CHAIN, HESITANT = Drafting(), Drafting(STOP)
TREE, HESITANT_TREE = Drafting(None, BRANCH), Drafting(STOP, BRANCH)


def quantized(model):
    quantize_linear_layers(model)
    return model


TARGETS = {name: small_model(name) for name in ARCHITECTURES}
DRAFTS = {name: sometimes_alike(small_model(name)) for name in ARCHITECTURES}  # sometimes sure
EAGLE3 = small_eagle3(kept=40)


class Made:
    """A target and what proposes on it, in one backend; models are its own."""

    def __init__(self, name, forward, kind, form=None):
        self.name, self.forward, self.form = name, forward, form or (lambda model: model)
        self.target = open_runtime(copy.deepcopy(TARGETS[name]), forward)
        assert self.target.name == forward
        self.proposer = KINDS[kind](self)

    def model(self, how=CHAIN):
        return ModelProposer(open_runtime(self.form(copy.deepcopy(DRAFTS[self.name])), self.forward), how)

    def eagle3(self, how=CHAIN):
        draft = open_eagle_runtime(self.form(copy.deepcopy(EAGLE3)), self.forward)
        return EagleProposer(self.target, draft, how)

    def exit(self, how=CHAIN):
        return EarlyExitProposer(self.target.first_layers(2), how)


KINDS = {
    "ngram": lambda _: NgramProposer(1, 3),
    "trusting ngram": lambda _: NgramProposer(1, 3, 1.5),
    "suffix": lambda _: SuffixProposer(1, 8, 2.0, 0.05),
    "suffix tree": lambda _: SuffixProposer(1, 8, 64.0, branch_above=0.05),
    "model": lambda made: made.model(),
    "hesitant model": lambda made: made.model(HESITANT),
    "model tree": lambda made: made.model(TREE),
    "hesitant model tree": lambda made: made.model(HESITANT_TREE),
    "exit": lambda made: made.exit(),
    "hesitant exit": lambda made: made.exit(HESITANT),
    "exit tree": lambda made: made.exit(TREE),
    "eagle3": lambda made: made.eagle3(),
    "hesitant eagle3": lambda made: made.eagle3(HESITANT),
    "eagle3 tree": lambda made: made.eagle3(TREE),
    "hesitant eagle3 tree": lambda made: made.eagle3(HESITANT_TREE),
    "mixed eagle3 tree": lambda made: CascadeProposer(SuffixProposer(2, 8, 2.0, 0.4), made.eagle3(TREE)),
    "mixed model": lambda made: CascadeProposer(NgramProposer(1, 2), made.model(), 2),
    "mixed model tree": lambda made: CascadeProposer(SuffixProposer(2, 8, 2.0, 0.4), made.model(TREE)),
    "mixed hesitant model tree": lambda made: CascadeProposer(
        NgramProposer(1, 2), made.model(HESITANT_TREE), 5
    ),
    "mixed eagle3": lambda made: CascadeProposer(NgramProposer(1, 2), made.eagle3(), 2),
}
DRAWING = (
    "model",
    "hesitant model",
    "exit",
    "eagle3",
    "hesitant eagle3",
    "mixed model",
    "mixed eagle3",
)
COPIES = ("ngram", "trusting ngram", "suffix", "suffix tree")
"""Those that know the text alone, and no model."""
PLACES = {
    ("transformers", "llama"): (*KINDS,),
    ("cpp", "llama"): tuple(kind for kind in KINDS if kind not in COPIES),
    ("transformers", "gemma3"): ("model tree", "hesitant exit", "hesitant eagle3 tree", "mixed model"),
    ("transformers", "gpt2"): ("hesitant model", "exit tree", "eagle3", "mixed eagle3 tree"),
    ("cpp", "gemma3"): ("hesitant model tree", "exit", "eagle3 tree", "mixed eagle3"),
}
"""Every kind on one architecture in each backend; on the others each proposer, chain and tree, sure and hesitant."""
CASES = [(*place, kind) for place, kinds in PLACES.items() for kind in kinds]
OPENED: dict[tuple[object, ...], Made] = {}
prompts = st.lists(st.integers(3, 60), min_size=1, max_size=20).map(tuple)
chances = st.integers(0, 10_000)


def opened(name, forward, kind, use="fresh", form=None):
    """Opened once: each begins anew with each prompt."""
    key = name, forward, kind, use, form
    if key not in OPENED:
        OPENED[key] = Made(name, forward, kind, form)
    return OPENED[key].target, OPENED[key].proposer


@pytest.mark.parametrize(("forward", "name", "kind"), CASES)
@examples(3)
@given(prompt=prompts, k=st.integers(1, 9), seed=chances)
def test_each_proposal_is_that_of_a_fresh_cache(forward, name, kind, prompt, k, seed):
    target, proposer = opened(name, forward, kind, "used")
    found = Steps(seed).run(target, proposer, prompt, GREEDY, k, 6)
    # Forwards of our own give the same bits in any shape.
    tolerance = 0.0 if forward == "cpp" else 1e-3
    check_fresh(lambda: opened(name, forward, kind), found, GREEDY, (STOP, BRANCH), tolerance)


@pytest.mark.parametrize(("forward", "name", "kind"), [one for one in CASES if one[2] in DRAWING])
@examples(2)
@given(prompt=prompts, k=st.integers(1, 6), seed=chances)
def test_each_drawn_proposal_is_that_of_a_fresh_cache(forward, name, kind, prompt, k, seed):
    sampler = Constant(DecodingMode(temperature=0.9, top_p=0.9))
    target, proposer = opened(name, forward, kind, "used")
    found = Steps(seed).run(target, proposer, prompt, sampler, k, 5)
    check_fresh(lambda: opened(name, forward, kind), found, sampler)


@pytest.mark.parametrize("form", [nn.Module.bfloat16, quantized], ids=["bf16", "int8"])
@pytest.mark.parametrize("kind", ["hesitant model", "mixed model tree", "eagle3 tree"])
@examples(3)
@given(prompt=prompts, k=st.integers(1, 9), seed=chances)
def test_kernels_of_our_own_give_the_same_bits_in_every_type(form, kind, prompt, k, seed):
    target, proposer = opened("llama", "cpp", kind, "used", form)
    found = Steps(seed).run(target, proposer, prompt, GREEDY, k, 5)
    check_fresh(lambda: opened("llama", "cpp", kind, form=form), found, GREEDY, (STOP, BRANCH), 0.0)


@pytest.mark.parametrize("how", [CHAIN, TREE], ids=["chain", "tree"])
@pytest.mark.parametrize("forward", BACKENDS)
def test_the_law_speaks_of_one_stale_token(forward, how):
    """In a cache whose length is right."""
    made, fresh = Made("llama", forward, "model"), Made("llama", forward, "model")
    stale = StaleProposer(made.model().runtime(), how)
    found = Steps(3).run(made.target, stale, (5, 9, 11, 4), GREEDY, 6, 10)
    draft = fresh.model(how)
    with pytest.raises(AssertionError, match="instead of"):
        check_fresh(lambda: (fresh.target, draft), found, GREEDY, (BRANCH,))


@pytest.mark.parametrize("kind", KINDS)
def test_a_look_at_a_step_reads_the_target_only_for_drafts_that_read_it(kind):
    made, prompt = Made("llama", "cpp", kind), (5, 6, 7, 5, 6, 7, 5, 6)
    decoding = speculative(made.target, made.proposer, Request(prompt, 24), 4)
    stood, proposal = decoding.proposals[len(decoding.proposals) // 2]
    assert stood + 4 < 24
    made.target.reset()
    made.target.forward((9, 8))
    gap, _ = fresh_gap(made.target, made.proposer, prompt, decoding.token_ids[:stood], proposal, 4)
    assert gap == 0.0
    assert (made.target.length != 2) == made.proposer.reads_target
    assert made.proposer.reads_target == any(word in kind for word in ("eagle3", "exit"))
