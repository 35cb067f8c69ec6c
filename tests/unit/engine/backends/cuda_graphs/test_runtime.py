"""Captured forwards: what the kernels compute equals transformers' own forward, and the engine's laws hold on them.

On a machine with a GPU the graphs themselves run, elsewhere the same kernels in Triton's interpreter, which knows no bf16.
"""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import replace

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from decoders import FAMILIES, decoder
from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.engine import loop
from draftrank.engine.backends.cuda_graphs import runtime as captured_runtime
from draftrank.engine.backends.cuda_graphs.eagle import CudaGraphsEagleRuntime
from draftrank.engine.backends.cuda_graphs.runtime import CudaGraphsRuntime
from draftrank.engine.backends.cuda_graphs.steps import CudaGraphSteps
from draftrank.engine.backends.own_forward import check_forward, check_trees
from draftrank.engine.backends.registry import open_eagle_runtime, open_runtime, why_not
from draftrank.engine.backends.transformers.generate import GenerateDecoder
from draftrank.engine.backends.transformers.runtime import TransformersEagleRuntime
from draftrank.engine.loop import Decoding, Request, autoregressive, speculative
from draftrank.engine.proposer import Proposal
from draftrank.engine.proposers.cascade import CascadeProposer
from draftrank.engine.proposers.draft_model import ModelProposer
from draftrank.engine.proposers.drafting import Drafting, SteppingModel
from draftrank.engine.proposers.eagle import EagleProposer
from draftrank.engine.proposers.early_exit import EarlyExitProposer
from draftrank.engine.proposers.ngram import NgramProposer
from draftrank.engine.sampling import Sampler, distribution, pick
from draftrank.engine.token_tree import TokenTree
from draftrank.engine.verification import coupled
from draftrank.errors import InvalidInputError, UnsupportedModelError
from draftrank.models.architecture import Architecture
from draftrank.models.forms import Eagle3Form, TrimmedHeadForm
from draftrank.models.vocabulary_rows import cut_rows, pad_rows
from models import own_logits, small_eagle3, small_model
from proposers import Constant, Steps, check_fresh

CUDA = torch.cuda.is_available()
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed (it comes with torch for CUDA)",
)

NAMES = ("llama", "gemma3")
DEVICE = "cuda" if CUDA else "cpu"
DTYPES = (torch.float32, torch.bfloat16) if CUDA else (torch.float32,)
at_night = pytest.mark.nightly if not CUDA else pytest.mark.gpu
"""What takes the interpreter long, and shares its laws with a case that does not."""
GREEDY = Sampler(DecodingMode())
TEXT = [7, 41, 13, 7, 41, 5, 22, 60, 3, 7, 41, 13, 18, 9, 33, 21, 7, 41, 13, 7, 50]


def model(
    name: str,
    *,
    seed: int = 0,
    layers: int = 2,
    dtype: torch.dtype = torch.float32,
    vocabulary: int = 61,
) -> PreTrainedModel:
    """A random model of a size that the kernels multiply, its windows shorter than some of the texts."""
    torch.manual_seed(seed)
    common = {
        "vocab_size": vocabulary,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_hidden_layers": layers,
        "head_dim": 32,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if name == "llama":
        made: PreTrainedModel = LlamaForCausalLM(
            LlamaConfig(num_attention_heads=3, num_key_value_heads=1, **common)
        )
    else:
        kinds = ["sliding_attention", "full_attention"] * layers
        made = Gemma3ForCausalLM(
            Gemma3TextConfig(
                num_attention_heads=2,
                num_key_value_heads=1,
                sliding_window=64,
                layer_types=kinds[:layers],
                query_pre_attn_scalar=20,
                **common,
            )
        )
        for module in made.modules():  # weights that a fresh model has at zero
            if type(module).__name__.endswith("RMSNorm"):
                torch.nn.init.normal_(module.weight, std=0.2)
    return made.eval().requires_grad_(False).to(DEVICE, dtype)


def captured(made: PreTrainedModel) -> CudaGraphsRuntime:
    assert CudaGraphsRuntime.fits(made)
    return CudaGraphsRuntime(made)


@at_night
@pytest.mark.parametrize("dtype", DTYPES)
def test_chains_and_trees_are_those_of_the_models_own_forward(dtype):
    """The kernels' windows are those that the configuration tells, or the difference is seen."""
    runtime = captured(model("gemma3", dtype=dtype))
    check_forward(runtime)
    check_trees(runtime)
    runtime.decoder._windows = dict.fromkeys(runtime.decoder._windows)
    runtime._forget_recordings()
    with pytest.raises(UnsupportedModelError, match="cuda-graphs"):
        check_forward(runtime)


@pytest.fixture(scope="module", autouse=True)
def _quick_interpreter():
    """Triton's interpreter patches its whole language with every call of every function, which once is enough where nothing
    is compiled; and it starts a program for every block of slots that there is room for, so there is little room."""
    if CUDA:
        yield
        return
    from triton.language import standard
    from triton.runtime import interpreter

    from draftrank.engine.backends.cuda_graphs import kernels

    ours, tritons = (interpreter._patch_lang(one.fn) for one in (kernels.head, standard.zeros))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", lambda _: interpreter._LangPatchScope())
        patch.setattr(captured_runtime, "_MIN_CAPACITY", 128)
        yield
    tritons.restore()
    ours.restore()


@pytest.fixture(scope="module")
def targets() -> dict[str, CudaGraphsRuntime]:
    return {name: captured(model(name)) for name in NAMES}


def close(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype = torch.float32) -> None:
    distance = (found.float() - wanted.float()).norm() / wanted.float().norm()
    assert distance < (2e-5 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_forwards_equal_those_of_transformers(name, dtype):
    """A prompt longer than one forward and than the window, short runs, single tokens, and what was taken back."""
    made = model(name, dtype=dtype)
    runtime = captured(copy.deepcopy(made))
    text = [(number * 29 + number // 7) % 58 + 3 for number in range(84)]
    wanted = own_logits(made, text)
    close(runtime.forward(text[:66], keep=3), wanted[63:66], dtype)
    runtime.forward([9, 9, 9])
    runtime.rollback(4)
    close(runtime.forward(text[65:80]), wanted[65:80], dtype)
    for place in range(80, 84):
        logits = runtime.forward([text[place]])
        close(logits, wanted[place : place + 1], dtype)
        assert runtime.choices(1) == logits.argmax(-1).tolist()
    assert runtime.length == 84
    runtime.reset()
    close(runtime.forward(text[:5]), wanted[:5], dtype)


def family(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model of two heads of a size that the kernels know, a quarter of it rotated where a family allows that."""
    settings = {
        "hidden_size": 64,
        "intermediate_size": 40,
        "num_attention_heads": 2,
        "initializer_range": 0.15,
    }
    settings["num_key_value_heads"] = 2 if name == "olmo2" else 1
    if name in ("gemma", "gemma2", "gemma3", "qwen3"):
        settings["head_dim"] = 32
    if name in ("gemma2", "gemma3", "mistral", "qwen2", "smollm3"):
        settings["sliding_window"] = 64
    if name == "phi3":
        settings["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.25,
        }
    return decoder(name, layers=2, **settings).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name",
    [
        name if name in ("granite", "olmo2") else pytest.param(name, marks=at_night)
        for name in FAMILIES
        if name not in NAMES
    ],
)
def test_every_family_is_computed_as_by_transformers(name, dtype):
    made = family(name, dtype)
    made.set_attn_implementation("eager")
    runtime = captured(copy.deepcopy(made))
    close(runtime.forward(TEXT[:6]), own_logits(made, TEXT[:6]), dtype)
    if CUDA or name not in ("granite", "olmo2"):
        check_forward(runtime)
        check_trees(runtime)


def test_what_the_kernels_do_not_know_is_not_taken():
    """LongRoPE, heads of another size than a power of two, capped logits of a trimmed head."""
    two = {"num_attention_heads": 2, "num_key_value_heads": 1}
    long = decoder("phi3").config.rope_parameters | {"partial_rotary_factor": 0.125}
    assert CudaGraphsRuntime.fits(family("phi3"))
    for made in (
        decoder("phi3", hidden_size=64, rope_parameters=long, **two),
        decoder("llama", hidden_size=96, **two),
        trimmed(family("gemma2")),
    ):
        assert not CudaGraphsRuntime.fits(made)


@pytest.mark.skipif(not CUDA, reason="numpy's products, by which Triton interprets, depend on a row's place")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits_however_a_chain_is_divided(name, dtype):
    runtime = captured(model(name, dtype=dtype))
    whole = runtime.forward(TEXT).clone()
    runtime.reset()
    for begin, end in [(0, 1), (1, 2), (2, 7), (7, 18), (18, 19), (19, 21)]:
        assert torch.equal(runtime.forward(TEXT[begin:end]), whole[begin:end])
    runtime.rollback(11)
    assert torch.equal(runtime.forward(TEXT[10:15]), whole[10:15])


@pytest.mark.parametrize("name", NAMES)
def test_a_tree_equals_its_paths(targets, name):
    made, runtime = targets[name].model, targets[name]
    prompt, tree = TEXT[:6], TokenTree((-1, 0, 0, 1, 2, 2))
    tokens = [11, 12, 13, 14, 15, 16]
    runtime.reset()
    runtime.forward(prompt)
    found = runtime.forward(tokens[:3], tree=TokenTree(tree.parents[:3])).clone()
    found = torch.cat([found, runtime.forward(tokens[3:], tree=tree)])
    for path in ([0, 1, 3], [0, 2, 4], [0, 2, 5]):
        wanted = own_logits(made, prompt + [tokens[place] for place in path])[-3:]
        close(found[path], wanted)
    runtime.commit(len(prompt), [0, 2, 5])
    assert runtime.length == len(prompt) + 3
    text = [*prompt, 11, 13, 16, 20]
    close(runtime.forward([20]), own_logits(made, text)[-1:])


@pytest.mark.parametrize("name", ["llama", pytest.param("gemma3", marks=at_night)])
def test_states_are_told_as_the_model_has_them(name):
    made = model(name)
    runtime = captured(copy.deepcopy(made))
    runtime.keep_hidden_states([0, 1])
    shape = Architecture.of(made)

    def wanted(text):
        with torch.inference_mode():
            return shape.states_of_layers(made, torch.tensor([text], device=DEVICE), [0, 1])[0]

    long = (TEXT * 4)[:70]
    runtime.forward(long, keep=1)
    close(runtime.hidden_states([0, 1]), wanted(long))
    runtime.forward([5, 6])
    close(runtime.hidden_states([0, 1]), wanted([*long, 5, 6])[-2:])
    close(runtime.hidden_states([1]), wanted([*long, 5, 6])[-2:, 48:])
    close(runtime.hidden_states(), wanted([*long, 5, 6])[-2:, 96:])


def trimmed(made: PreTrainedModel) -> PreTrainedModel:
    head = made.lm_head.weight.clone()
    form = TrimmedHeadForm(module="lm_head", kept=40)
    form.prepare(made)
    made.lm_head.token_ids.copy_(torch.arange(3, 43))
    made.lm_head.projection.weight.data = head[3:43].clone()
    return made.to(DEVICE)


def eagle3(seed: int = 4, *, norm_before_residual: bool = False) -> PreTrainedModel:
    """An EAGLE-3 head with a trimmed head over the vocabulary."""
    made = model("llama", seed=seed, layers=1)
    Eagle3Form(layers=(0, 1), norm_before_residual=norm_before_residual).prepare(made)
    torch.manual_seed(seed)
    for part in (made.feature_fusion, made.model.layers[0]):
        for weight in part.parameters():
            weight.data = torch.randn_like(weight) * 0.2 + (weight.ndim == 1)
    return trimmed(made)


@pytest.mark.parametrize("norm_before_residual", [False, True])
def test_an_eagle3_head_computes_what_it_does_in_transformers(norm_before_residual):
    made = eagle3(norm_before_residual=norm_before_residual)
    fast = CudaGraphsEagleRuntime(copy.deepcopy(made))
    slow = TransformersEagleRuntime(made)
    told = torch.randn(6, 3 * 48, device=DEVICE)
    for runtime in (fast, slow):
        runtime.offer(runtime.reduced(told).clone())
    close(fast.forward(TEXT[:6])[:, 3:43], slow.forward(TEXT[:6])[:, 3:43])
    for token in TEXT[6:9]:  # beside its own states
        close(fast.forward([token])[:, 3:43], slow.forward([token])[:, 3:43])
    tree = TokenTree.behind((-1, -1, 0))
    close(fast.forward(TEXT[9:13], tree=tree)[:, 3:43], slow.forward(TEXT[9:13], tree=tree)[:, 3:43])


def test_a_trimmed_head_answers_for_all_tokens():
    made = trimmed(model("llama"))
    runtime = captured(copy.deepcopy(made))
    found, wanted = runtime.forward(TEXT[:4]), own_logits(made, TEXT[:4])
    assert torch.equal(found.isinf(), wanted.isinf())
    close(found[:, 3:43], wanted[:, 3:43])
    assert runtime.choices(4) == wanted.argmax(-1).tolist()


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param((61, 64), id="draft has more"),
        pytest.param((64, 61), id="draft has fewer", marks=at_night),
    ],
)
def test_padded_vocabularies_change_neither_output_nor_law(rows):
    """Also where steps need no host: these feed the target's own choices to the draft."""
    ours, theirs = rows
    target, draft = captured(model("llama", vocabulary=ours)), model("llama", layers=1, vocabulary=theirs)
    cut_rows(draft, ours)
    pad_rows(draft, ours)
    proposer = ModelProposer(captured(draft))
    request = Request((*TEXT[:3], ours - 1), 4)
    expected = autoregressive(target, request).token_ids
    assert speculative(target, proposer, request, 2).token_ids == expected
    logits = proposer.runtime().forward([5, ours - 1])
    assert logits.shape == (2, ours)
    assert logits[:, min(rows) :].eq(-torch.inf).all()
    likely = distribution(logits, DecodingMode(temperature=1.0))
    assert likely[:, min(rows) :].eq(0).all()
    sampled = Request(request.prompt, 3, mode=DecodingMode(temperature=1.0), seed=3)
    assert len(speculative(target, proposer, sampled, 2).token_ids) == 3


@pytest.mark.parametrize("token", [-1, 61, 10_000_000])
def test_ids_outside_the_embedding_never_reach_the_device(targets, token):
    runtime = targets["llama"]
    runtime.reset()
    for move in (
        lambda: runtime.forward([9, token]),
        lambda: runtime.forward([9, token], tree=TokenTree((-1, 0))),
        lambda: runtime.offer_instead(9, [token]),
    ):
        with pytest.raises(IndexError, match=f"token id {token} is outside the embedding's 61 rows"):
            move()


def proposer_on(target: CudaGraphsRuntime, name: str, kind: str):
    """Proposes on a target; drafts are models of its family."""

    def near(how: Drafting | None = None):
        return ModelProposer(captured(model(name, layers=1)), how or Drafting())

    def head(how: Drafting | None = None):
        return EagleProposer(target, CudaGraphsEagleRuntime(eagle3()), how or Drafting())

    copies = NgramProposer(1, 3)
    made = {
        "ngram": lambda: copies,
        "chain": near,
        "stops": lambda: near(Drafting(stop_below=0.3)),
        "tree": lambda: near(Drafting(branch_above=0.05)),
        "itself": lambda: ModelProposer(captured(model(name))),
        "exit": lambda: EarlyExitProposer(target.first_layers(1)),
        "eagle3": head,
        "eagle3 tree": lambda: head(Drafting(branch_above=0.05)),
        "mixed model": lambda: CascadeProposer(copies, near(), 2),
        "cascade": lambda: CascadeProposer(copies, head(), 2),
    }
    return made[kind]()


SOON = ("chain", "exit", "eagle3 tree")
AT_NIGHT = ("stops", "cascade", "ngram", "tree", "itself", "eagle3")


@pytest.mark.parametrize(
    ("name", "proposer"),
    [
        *(("llama", one) for one in SOON),
        *(pytest.param("llama", one, marks=at_night) for one in AT_NIGHT),
        pytest.param("gemma3", "cascade", marks=at_night),
    ],
)
def test_greedy_speculation_equals_greedy_decoding(targets, name, proposer):
    target = targets[name]
    found = proposer_on(target, name, proposer)
    request = Request(tuple(TEXT[:14]), 32 if CUDA else 6)
    plain = autoregressive(target, request)
    for _ in range(2 if CUDA else 1):
        drafted: Decoding = speculative(target, found, request, 4)
        assert drafted.token_ids == plain.token_ids
        assert len(drafted.token_ids) == 1 + drafted.steps + sum(
            count * accepted for accepted, count in enumerate(drafted.accept_histogram)
        )
        if proposer == "itself":
            assert drafted.acceptance_length > 3
        assert drafted.propose_s >= 0
        assert 0 < drafted.verify_s <= drafted.decode_s * 1.01


@pytest.mark.parametrize(
    "proposer",
    [
        "tree",
        *(pytest.param(one, marks=at_night) for one in ("chain", "stops", "exit", "eagle3 tree", "cascade")),
    ],
)
def test_each_proposal_is_that_of_a_fresh_cache(targets, proposer):
    target = targets["llama"]
    steps = 20 if CUDA else 2
    found = Steps(5).run(target, proposer_on(target, "llama", proposer), TEXT[:14], GREEDY, 4, steps)
    check_fresh(lambda: (target, proposer_on(target, "llama", proposer)), found, GREEDY, (0.3, 0.05))


@pytest.mark.parametrize(
    "proposer",
    [
        "eagle3",
        *(pytest.param(one, marks=at_night) for one in ("mixed model", "chain", "cascade")),
    ],
)
def test_each_proposal_of_the_device_is_that_of_a_fresh_cache(monkeypatch, targets, proposer):
    """Also the first, and behind what was copied."""
    found = []
    run = CudaGraphSteps.run

    def watched(self, context, sampler):
        for outcome in run(self, context, sampler):
            found.append((tuple(context), 3, Proposal(outcome.proposed, forwards=self.chain)))
            yield outcome

    monkeypatch.setattr(CudaGraphSteps, "run", watched)
    target = targets["llama"]
    # what comes first has stood before, so that there is something to copy
    request = Request(tuple(TEXT[3:12]), 40 if CUDA else 8)
    speculative(target, proposer_on(target, "llama", proposer), request, 3)
    found = [one for one in found if len(one[0]) + 3 < 9 + request.max_new_tokens]
    assert len(found) > 1
    check_fresh(lambda: (target, proposer_on(target, "llama", proposer)), found, GREEDY)


@at_night
def test_a_head_proposes_what_it_proposes_in_the_slower_runtime(monkeypatch):
    """Its tokens are read with its own states, those that the target has verified with the target's."""
    made, text = model("llama"), tuple(TEXT[:15])
    proposed: dict[str, list[list[int]]] = {"cuda-graphs": [], "transformers": []}
    step, propose = CudaGraphSteps.run, EagleProposer.propose

    def watched_step(self, context, sampler):
        for outcome in step(self, context, sampler):
            proposed["cuda-graphs"].append(outcome.proposed)
            yield outcome

    def watched_propose(self, context, count):
        found = propose(self, context, count)
        proposed["transformers"].append(list(found.tokens))
        return found

    monkeypatch.setattr(CudaGraphSteps, "run", watched_step)
    drafted = {}
    for forward in ("cuda-graphs", "transformers"):
        target = open_runtime(copy.deepcopy(made), forward)
        proposer = EagleProposer(target, open_eagle_runtime(eagle3(), forward))
        if forward == "transformers":
            monkeypatch.setattr(EagleProposer, "propose", watched_propose)
        drafted[forward] = speculative(target, proposer, Request(text, 8), 3)
    assert drafted["cuda-graphs"].token_ids == drafted["transformers"].token_ids
    assert drafted["cuda-graphs"].accept_histogram == drafted["transformers"].accept_histogram
    assert len(proposed["transformers"]) > 2
    for fast, slow in zip(proposed["cuda-graphs"], proposed["transformers"], strict=False):
        assert fast[: len(slow)] == slow


SAMPLING = DecodingMode(temperature=1.0, top_k=30, top_p=0.95)


@at_night
@pytest.mark.parametrize(
    ("name", "proposer", "number"),
    [
        ("llama", "chain", 0.7),
        ("llama", "chain", 0.15),
        ("llama", "cascade", 0.4),
        ("llama", "eagle3", 0.6),
        ("gemma3", "cascade", 0.2),
    ],
)
def test_steps_on_the_device_draw_what_the_host_would(monkeypatch, targets, name, proposer, number):
    """The same random numbers give the same tokens, up to the last step: the host proposes no more than can stand there."""
    monkeypatch.setattr(Constant, "number", number)
    monkeypatch.setattr(loop, "Sampler", Constant)
    target = targets[name]
    k, request = 2, Request(tuple(TEXT[:14]), 32 if CUDA else 6, mode=SAMPLING)
    on_device = speculative(target, proposer_on(target, name, proposer), request, k)
    assert on_device.draft_forwards > 0
    monkeypatch.setattr(SteppingModel, "device_steps", lambda *_: None)
    by_host = speculative(target, proposer_on(target, name, proposer), request, k)
    assert on_device.token_ids[:-k] == by_host.token_ids[:-k]
    alone = autoregressive(target, request)
    monkeypatch.setattr(target, "capabilities", replace(target.capabilities, device=False))
    assert autoregressive(target, request).token_ids == alone.token_ids


def test_random_numbers_are_used_once_and_in_their_places(monkeypatch, targets):
    """Each step again by hand: what the draft drew, and what the target chose instead."""
    drawn, steps = [], []
    uniforms, run = Sampler.uniforms, CudaGraphSteps.run

    def watched(self, count):
        drawn.append(uniforms(self, count).clone())
        return drawn[-1]

    def watched_run(self, context, sampler):
        for outcome in run(self, context, sampler):
            steps.append((list(context), outcome))
            yield outcome

    monkeypatch.setattr(Sampler, "uniforms", watched)
    monkeypatch.setattr(CudaGraphSteps, "run", watched_run)
    target, near = targets["llama"], model("llama", layers=1)
    request = Request(tuple(TEXT[:14]), 8, mode=SAMPLING, seed=3)
    found = speculative(target, ModelProposer(captured(near)), request, 2)
    monkeypatch.undo()
    assert found.steps == len(steps) > 2
    by_step = [one for one in drawn if len(one) == 2 + 1 + 2]
    firsts = torch.cat([one for one in drawn if len(one) == 1])
    assert len(firsts) == 1 + 2  # the first token, and what was proposed behind it
    of_draft = firsts[1:]
    for (context, outcome), numbers in zip(steps, by_step, strict=False):
        text = [*context, *outcome.proposed]
        q = distribution(own_logits(near, text)[len(context) - 1 : -1], SAMPLING)
        p = distribution(own_logits(target.model, text)[len(context) - 1 :], SAMPLING)
        proposed = torch.tensor(outcome.proposed, device=DEVICE)
        assert outcome.proposed == pick(q, of_draft.to(DEVICE)).tolist()
        wanted = coupled(p, q, proposed, numbers[:3].to(DEVICE)).tolist()
        assert outcome.choices == wanted
        of_draft = numbers[3:]


@at_night
def test_a_trimmed_draft_draws_from_the_whole_vocabulary(targets):
    target, draft = targets["llama"], captured(trimmed(model("llama")))
    request = Request(tuple(TEXT[:15]), 5, mode=SAMPLING)
    found = speculative(target, ModelProposer(draft), request, 3)
    assert sum(found.accept_histogram[1:]) > 0


@pytest.mark.skipif(not CUDA, reason="what a graph may hold depends on the vocabulary's size")
@pytest.mark.parametrize("vocabulary", [49_152, 262_144])
def test_graphs_draw_from_vocabularies_of_real_models(monkeypatch, vocabulary):
    monkeypatch.setattr(Constant, "number", 0.3)
    monkeypatch.setattr(loop, "Sampler", Constant)
    target = captured(model("llama", vocabulary=vocabulary))
    draft = ModelProposer(captured(model("llama", vocabulary=vocabulary, layers=1)))
    request = Request(tuple(TEXT[:14]), 20, mode=SAMPLING)
    on_device = speculative(target, draft, request, 4)
    monkeypatch.setattr(SteppingModel, "device_steps", lambda *_: None)
    by_host = speculative(target, draft, request, 4)
    assert on_device.token_ids[:-4] == by_host.token_ids[:-4]


@at_night
def test_sampling_follows_the_seed(targets):
    target = targets["llama"]
    draft = ModelProposer(captured(model("llama", layers=1)))
    outputs = []
    for seed in (5, 5, 6):
        request = Request(tuple(TEXT[:15]), 4, mode=DecodingMode(temperature=2.0), seed=seed)
        outputs.append(
            (speculative(target, draft, request, 2).token_ids, autoregressive(target, request).token_ids)
        )
    assert outputs[0] == outputs[1]
    assert outputs[0][0] != outputs[2][0]
    assert outputs[0][1] != outputs[2][1]


def test_a_forward_is_timed_without_being_appended(targets):
    target = targets["llama"]
    target.reset()
    target.forward(TEXT[:5])
    assert target.forward_s([7, 8]) > 0
    assert target.length == 5


def test_room_grows_and_what_is_held_stays(monkeypatch):
    monkeypatch.setattr(captured_runtime, "_MIN_CAPACITY", 32)
    made = model("llama")
    runtime = captured(copy.deepcopy(made))
    text = (TEXT * 3)[:50]
    runtime.forward(text[:20])
    close(runtime.forward(text[20:]), own_logits(made, text)[20:])


def test_a_tree_beyond_one_forward_is_refused(targets):
    runtime = targets["llama"]
    runtime.reset()
    with pytest.raises(InvalidInputError, match="use at most 63"):
        runtime.forward([5] * 65, tree=TokenTree((-1, *[0] * 64)))


def test_generate_runs_on_the_same_model(targets):
    target = targets["llama"]
    request = Request(tuple(TEXT[:15]), 6)
    assert GenerateDecoder(target).decode(request).token_ids == autoregressive(target, request).token_ids


def test_an_exit_after_all_layers_is_refused(targets):
    with pytest.raises(InvalidInputError, match="use at most 1"):
        targets["llama"].first_layers(2)


def test_what_the_kernels_do_not_multiply_is_told():
    """Heads that are too small, windows shorter than a forward, other architectures."""
    for model in (*map(small_model, ("llama", "gemma3", "gpt2")), small_eagle3()):
        assert why_not("cuda-graphs", model, "fp32", "cuda")
