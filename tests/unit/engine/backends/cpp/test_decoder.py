"""Our own kernels on a CPU: what they compute equals transformers' own forward, and the engine's laws hold on them."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.ao.nn.quantized.dynamic import Linear as DynamicInt8Linear
from transformers import LlamaConfig, LlamaForCausalLM

from block_models import in_blocks
from decoders import FAMILIES, decoder
from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.engine.backends.cpp.decoder import MAX_TOKENS, CppDecoder
from draftrank.engine.backends.cpp.runtime import CppEagleRuntime, CppRuntime
from draftrank.engine.backends.own_forward import check_forward, check_trees
from draftrank.engine.backends.transformers.runtime import TransformersEagleRuntime, TransformersRuntime
from draftrank.engine.loop import Request, autoregressive, speculative
from draftrank.engine.proposers.draft_model import ModelProposer
from draftrank.engine.proposers.drafting import Drafting, draft_tokens
from draftrank.engine.proposers.eagle import EagleProposer
from draftrank.engine.proposers.early_exit import EarlyExitProposer
from draftrank.engine.proposers.ngram import NgramProposer
from draftrank.engine.sampling import Sampler
from draftrank.engine.token_tree import TokenTree
from draftrank.errors import UnsupportedModelError
from draftrank.models.architecture import Architecture
from draftrank.models.forms import LowRankForm, TrimmedHeadForm, quantize_linear_layers
from examples import examples
from models import own_logits, small_eagle3, small_model, sometimes_alike
from runtimes import BACKENDS, check_rollbacks, runtime_by

NAMES = ("llama", "gemma3")
"""What is slow runs on these; what makes a family another one, on all."""
STORED = ("fp32", "bf16", "blocks")
"""How matrices are stored, see `NATIVE`."""
MODELS = {name: decoder(name) for name in FAMILIES}
tokens = st.lists(st.integers(3, 60), min_size=1, max_size=12)
prompts = st.lists(st.integers(3, 60), min_size=1, max_size=30).map(tuple)


def compiled(model) -> CppRuntime:
    assert CppDecoder.fits(model)
    return CppRuntime(model)


TARGETS = {name: compiled(copy.deepcopy(model)) for name, model in MODELS.items()}
IN_BLOCKS = {name: compiled(in_blocks(MODELS[name])[0]) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
@examples(25)
@given(moves=st.lists(st.tuples(tokens, st.integers(0, 12)), min_size=1, max_size=6))
def test_rolled_back_caches_equal_fresh_ones(name, moves):
    check_rollbacks(TARGETS[name], MODELS[name], moves)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("prefill", [1, MAX_TOKENS, MAX_TOKENS + 1, 120])
def test_long_and_short_forwards_share_one_cache(name, prefill):
    """Also behind a prefill that transformers ran, beyond the sliding window and the first table of rotations."""
    runtime, sequence = TARGETS[name], [3 + place % 57 for place in range(prefill + 7)]
    runtime.reset()
    runtime.forward(sequence[:prefill], keep=1)
    runtime.forward(sequence[prefill : prefill + 1])
    found = runtime.forward(sequence[prefill + 1 :], keep=3)
    torch.testing.assert_close(found, own_logits(MODELS[name], sequence)[-3:], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_in_bf16_it_stays_within_the_rounding_of_the_other(name):
    model = decoder(name).to(torch.bfloat16)
    sequence = [3 + place * 7 % 50 for place in range(40)]
    exact = own_logits(MODELS[name], sequence)[30:]
    far = {}
    for runtime in (TransformersRuntime(copy.deepcopy(model)), compiled(model)):
        runtime.forward(sequence[:30])
        far[runtime.name] = float((runtime.forward(sequence[30:]).float() - exact).abs().mean())
    assert far["cpp"] <= 1.5 * far["transformers"]


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_the_states_after_the_last_norm(name):
    runtime = compiled(decoder(name))
    runtime.forward([5, 6])
    runtime.keep_hidden_states()
    sequence = [5, 6, 7, 8, 9]
    logits = runtime.forward(sequence[2:], keep=1)
    with torch.inference_mode():
        states = Architecture.of(MODELS[name]).hidden_states(MODELS[name], torch.tensor([sequence]))[0]
    torch.testing.assert_close(runtime.hidden_states(), states[2:], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(logits, own_logits(MODELS[name], sequence)[-1:], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("forward", BACKENDS)
def test_outputs_of_layers_are_told_beside_them(name, forward):
    """Of chains, of trees once a path was kept, and of prefills; each reader asks for layers of its own."""
    runtime = runtime_by(decoder(name), forward)
    runtime.keep_hidden_states((1,))
    runtime.keep_hidden_states((0, 2))
    sequence = [3 + place % 57 for place in range(MAX_TOKENS + 9)]

    def expected(text, layers):
        with torch.inference_mode():
            shape = Architecture.of(MODELS[name])
            return shape.states_of_layers(MODELS[name], torch.tensor([text]), layers)[0]

    runtime.forward(sequence[: MAX_TOKENS + 5], keep=1)
    told = expected(sequence[: MAX_TOKENS + 5], (0, 2))
    torch.testing.assert_close(runtime.hidden_states((0, 2)), told, atol=3e-4, rtol=1e-3)
    runtime.forward(sequence[MAX_TOKENS + 5 :], keep=1)
    for layers in ((1,), (0, 2), ()):
        told = expected(sequence, layers)[-4:]
        torch.testing.assert_close(runtime.hidden_states(layers), told, atol=3e-4, rtol=1e-3)
    runtime.forward((7, 8, 9, 10), tree=TokenTree.behind((-1, -1, 1)))
    runtime.commit(len(sequence), (0, 2, 3))
    told = expected([*sequence, 7, 9, 10], (1,))[-3:]
    torch.testing.assert_close(runtime.hidden_states((1,)), told, atol=3e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "proposer"),
    [
        *((name, one) for name in NAMES for one in ("equal", "stranger", "ngram", "exit", "eagle3", "tree")),
        *((name, "exit") for name in FAMILIES if name not in NAMES),
    ],
)
@examples(5)
@given(prompt=prompts, k=st.integers(1, 8), limit=st.integers(1, 40))
def test_greedy_speculation_equals_greedy_decoding(name, proposer, prompt, k, limit):
    target = TARGETS[name]
    request = Request(prompt, limit, frozenset({4}))
    expected = autoregressive(target, request)
    found = speculative(target, PROPOSERS[proposer](name, target), request, k)
    assert (found.token_ids, found.finish) == (expected.token_ids, expected.finish)
    plain = autoregressive(TransformersRuntime(MODELS[name]), request)
    assert found.token_ids == plain.token_ids


PROPOSERS = {
    "equal": lambda name, _: ModelProposer(compiled(copy.deepcopy(MODELS[name]))),
    "stranger": lambda name, _: ModelProposer(
        TransformersRuntime(decoder(name, seed=9, layers=1)), Drafting(0.3)
    ),
    "ngram": lambda _, __: NgramProposer(1, 3),
    "exit": lambda _, target: EarlyExitProposer(target.first_layers(2)),
    "eagle3": lambda _, target: EagleProposer(target, CppEagleRuntime(small_eagle3())),
    "tree": lambda name, _: ModelProposer(
        TransformersRuntime(sometimes_alike(decoder(name))), Drafting(None, 0.02)
    ),
}


def changed(name, change):
    model = decoder(name)
    shape = Architecture.of(model)
    if change == "int8":
        quantize_linear_layers(model)
    elif change == "low rank":
        for place in range(len(shape.layers(model))):
            LowRankForm(module=f"model.layers.{place}.mlp.up_proj", rank=6).prepare(model)
    elif change == "low-rank head":
        LowRankForm(module="lm_head", rank=6).prepare(model)
    else:
        TrimmedHeadForm(module="lm_head", kept=40, rank=6 if "low-rank" in change else None).prepare(model)
    return model.eval()


def unquantized(model):
    """What the rounded weights of an int8 model are, in fp32."""
    for name, module in list(model.named_modules()):
        if isinstance(module, DynamicInt8Linear):
            weight = module.weight().dequantize()
            bias = module.bias()
            plain = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
            plain.weight.data = weight
            if bias is not None:
                plain.bias.data = bias.detach()
            model.set_submodule(name, plain)
    return model.requires_grad_(False)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("change", ["int8", "trimmed head", "low-rank head", "low-rank trimmed head"])
def test_quantized_layers_and_other_heads_are_computed(name, change):
    model = changed(name, change)
    sequence = [3 + place % 50 for place in range(20)]
    expected = TransformersRuntime(copy.deepcopy(model))
    found = compiled(model)
    if change == "int8":  # whose activations are not rounded there
        expected = TransformersRuntime(unquantized(changed(name, change)))
    for runtime in (expected, found):
        runtime.forward(sequence[:12])
    torch.testing.assert_close(
        found.forward(sequence[12:]), expected.forward(sequence[12:]), atol=2e-3, rtol=1e-3
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_computed_as_by_transformers(name, dtype):
    runtime = compiled(decoder(name).to(dtype))
    check_forward(runtime)
    check_trees(runtime)
    assert runtime.capabilities.tree_growth


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_of_a_gguf_file_are_computed_within_the_rounding_of_bf16(name):
    """Of every type that fits, the embedding's too. Transformers in bf16 rounds the weights as well."""
    made, plain = in_blocks(decoder(name))
    runtime = compiled(made)
    check_forward(runtime)
    check_trees(runtime)
    assert runtime.capabilities.tree_growth
    sequence = [3 + place * 7 % 50 for place in range(40)]
    exact = own_logits(plain, sequence)[30:]
    torch.testing.assert_close(own_logits(made, sequence)[30:], exact)
    far = {}
    for other in (TransformersRuntime(copy.deepcopy(plain).to(torch.bfloat16)), runtime):
        other.reset()
        other.forward(sequence[:30])
        far[other.name] = float((other.forward(sequence[30:]).float() - exact).abs().mean())
    assert far["cpp"] <= 1.5 * far["transformers"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("proposer", ["equal", "stranger", "ngram", "exit", "eagle3", "tree"])
@examples(5)
@given(prompt=prompts, k=st.integers(1, 8), limit=st.integers(1, 40))
def test_greedy_speculation_in_blocks_equals_greedy_decoding(name, proposer, prompt, k, limit):
    target = IN_BLOCKS[name]
    request = Request(prompt, limit, frozenset({4}))
    found = speculative(target, PROPOSERS[proposer](name, target), request, k)
    expected = autoregressive(target, request)
    assert (found.token_ids, found.finish) == (expected.token_ids, expected.finish)


def test_settings_that_a_family_does_not_have_are_ignored():
    model = small_model("llama")
    model.config.embedding_multiplier = model.config.logits_scaling = 3.0
    model.config.final_logit_softcapping = 1.0
    check_forward(compiled(model))


def test_longrope_shortens_the_context_to_its_first_frequencies():
    """Of 256 tokens to 128, behind which transformers takes the others."""
    runtime = compiled(decoder("phi3"))
    assert runtime.context_window == runtime.first_layers(2).context_window == 128
    assert compiled(decoder("llama")).context_window == 256


ATTENTION_BIASED = ("qwen2", "qwen3", "granite", "smollm3")
OPTIONS = {
    "queries.bias": (ATTENTION_BIASED, None),
    "values.bias": (ATTENTION_BIASED, None),
    "attention_output.bias": (("granite", "smollm3"), None),
    "up.bias": (("granite",), None),
    "feed_forward_output.bias": (("granite",), None),
    "key_norm": (("qwen3", "gemma3", "olmo2"), None),
    "joint_norms": (("olmo2",), 0),
    "attention_norm": (("llama", "phi3"), None),
    "feed_forward_output_norm": (("gemma2", "olmo2"), None),
    "score_cap": (("gemma2",), 0.0),
    "scale": (("gemma2", "granite"), None),
    "residual_scale": (("granite",), 1.0),
    "kind": (("smollm3",), 0),  # of a layer without rotary embedding
}
"""What tells one family from another: those that have it, and what a layer says that does without."""


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for option, (names, _) in OPTIONS.items() for name in names]
)
def test_an_option_left_out_of_one_layer_is_noticed(name, option):
    """So the comparisons with transformers see each of them."""
    runtime = compiled(decoder(name))
    layer, without = runtime._decoder._layers[1], OPTIONS[option][1]
    if option == "scale":
        without = 8**-0.5 if layer.scale < 0.3 else 0.25
    *part, field = option.split(".")
    setattr(getattr(layer, *part) if part else layer, field, without)
    with pytest.raises(UnsupportedModelError, match="cpp"):
        check_forward(runtime)


@pytest.mark.parametrize(
    ("name", "of", "changed"),
    [
        ("granite", "_dimensions", {"input_scale": 1.0}),
        ("granite", "_ends", {"logit_divisor": 1.0}),
        ("gemma2", "_ends", {"logit_cap": 0.0}),
        ("gemma", "_ends", {"scale": 1.0}),
    ],
)
def test_what_is_left_out_around_the_layers_is_noticed(name, of, changed):
    runtime = compiled(decoder(name))
    for field, value in changed.items():
        setattr(getattr(runtime._decoder, of), field, value)
    with pytest.raises(UnsupportedModelError, match="cpp"):
        check_forward(runtime)


def with_sinks(model):
    model.model.layers[1].self_attn.sinks = nn.Parameter(torch.zeros(4))


def with_another_norm(model):
    model.model.layers[1].self_attn.v_norm = copy.deepcopy(model.model.norm)


def with_another_epsilon(model):
    model.model.norm.variance_epsilon = 1e-3


def with_layer_norms(model):
    model.model.layers[1].input_layernorm = nn.LayerNorm(32, bias=False)


def with_a_biased_head(model):
    model.lm_head = nn.Linear(32, 61)


def with_dynamic_rotation(model):
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_type": "dynamic"}


def with_another_activation(model):
    model.config.hidden_act = "gelu"


def with_a_wider_layer(model):
    model.model.layers[1].mlp.up_proj = nn.Linear(32, 49, bias=False)


@pytest.mark.parametrize(
    "change",
    [
        with_sinks,
        with_another_norm,
        with_another_epsilon,
        with_layer_norms,
        with_a_biased_head,
        with_dynamic_rotation,
        with_another_activation,
        with_a_wider_layer,
    ],
)
def test_what_a_block_does_not_tell_is_not_taken(change):
    model = small_model("llama")
    assert CppDecoder.fits(model)
    change(model)
    assert not CppDecoder.fits(model)


def test_other_architectures_and_forms_are_not_taken():
    for name in ("gpt2", "cohere", "gpt_oss", "glm4"):
        assert not CppDecoder.fits(small_model(name))
    assert not CppDecoder.fits(changed("llama", "low rank"))


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("name", FAMILIES)
@examples(12)
@given(
    sequence=st.lists(st.integers(3, 60), min_size=2, max_size=90),
    cuts=st.lists(st.integers(1, 89), max_size=8),
    forgotten=st.integers(0, 9),
)
def test_the_kernels_give_the_same_bits_however_tokens_are_divided(name, stored, sequence, cuts, forgotten):
    """Also over the rests of tokens that were taken back."""
    runtime = NATIVE[name, stored]
    runtime.reset()
    whole = runtime.forward(sequence)
    runtime.rollback(len(sequence))
    bounds = sorted({0, len(sequence), *(cut for cut in cuts if cut < len(sequence))})
    parts = []
    for begin, end in pairwise(bounds):
        runtime.forward([9] * (forgotten + 1))
        runtime.rollback(forgotten + 1)
        parts.append(runtime.forward(sequence[begin:end]))
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("name", FAMILIES)
@examples(8)
@given(
    prompt=st.lists(st.integers(3, 60), min_size=1, max_size=40),
    parents=st.lists(st.integers(0, 11), min_size=1, max_size=12),
)
def test_the_kernels_give_the_same_bits_in_a_tree_as_on_its_paths(name, stored, prompt, parents):
    runtime = NATIVE[name, stored]
    tree = TokenTree((-1, *(min(parent, place) for place, parent in enumerate(parents))))
    fed = [3 + 7 * place % 57 for place in range(len(tree.parents))]
    runtime.reset()
    runtime.forward(prompt)
    found = runtime.forward(fed, tree=tree)
    for place in range(len(fed)):
        path = [one for one in range(len(fed)) if tree.ancestors[place] >> one & 1]
        runtime.reset()
        runtime.forward(prompt)
        assert torch.equal(runtime.forward([fed[one] for one in path])[-1], found[place])


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("name", FAMILIES)
@examples(10)
@given(
    prompt=st.lists(st.integers(3, 60), min_size=1, max_size=40),
    unseen=st.lists(st.integers(3, 60), min_size=1, max_size=MAX_TOKENS),
    count=st.integers(1, 9),
    stop_below=st.none() | st.floats(0.02, 0.9),
)
def test_a_chain_is_what_one_forward_after_the_other_chooses(name, stored, prompt, unseen, count, stop_below):
    """And leaves what they would leave, to the last bit."""
    runtime, sampler = NATIVE[name, stored], Sampler(DecodingMode())
    runtime.reset()
    runtime.forward(prompt)
    logits, expected = runtime.forward(unseen)[-1:], []
    while True:
        expected.append(sampler.choose(logits))
        confident = stop_below is None or sampler.confidence(logits) >= stop_below
        if len(expected) == count or not confident:
            break
        logits = runtime.forward(expected[-1:])
    after = runtime.forward([5])
    runtime.reset()
    runtime.forward(prompt)
    assert runtime.chain(unseen, count, stop_below) == expected
    assert runtime.length == len(prompt) + len(unseen) + len(expected) - 1
    assert torch.equal(runtime.forward([5]), after)


def asked(runtime):
    """The same runtime, which grows no trees by itself."""
    twin = copy.copy(runtime)
    twin.capabilities = replace(runtime.capabilities, tree_growth=False)
    return twin


widths = st.builds(Drafting, st.none() | st.floats(0.02, 0.6), st.floats(0.005, 0.5))


@pytest.mark.parametrize("name", FAMILIES)
@examples(15)
@given(
    prompt=st.lists(st.integers(3, 60), min_size=1, max_size=40),
    unseen=st.lists(st.integers(3, 60), min_size=1, max_size=12),
    count=st.integers(1, 64),
    drafting=widths,
)
def test_a_tree_is_the_one_that_one_forward_after_the_other_grows(name, prompt, unseen, count, drafting):
    """And leaves what they would leave, to the last bit."""
    runtime, sampler = NATIVE[name, "fp32"], Sampler(DecodingMode())
    found = []
    for draft in (asked(runtime), runtime):
        runtime.reset()
        runtime.forward(prompt)
        proposal = draft_tokens(draft, sampler, unseen, count, drafting)
        runtime.rollback(runtime.length - len(prompt) - len(unseen))
        found.append(
            (proposal.tokens, proposal.parents, proposal.drafted, proposal.forwards, runtime.forward([5]))
        )
    (*expected, after), (*told, left) = found
    assert told == expected
    assert torch.equal(after, left)


@pytest.mark.parametrize("change", [None, "int8", "trimmed head"])
def test_a_tree_beside_states_of_the_target_is_the_same(change):
    model = head_of(change)
    found = []
    for by_itself in (False, True):
        runtime = CppEagleRuntime(copy.deepcopy(model))
        offered = torch.randn(6, runtime._states._width, generator=torch.Generator().manual_seed(4))
        runtime.offer(offered[:2])
        runtime.forward([5, 6])
        runtime.offer(offered[2:])
        draft = runtime if by_itself else asked(runtime)
        found.append(draft_tokens(draft, Sampler(DecodingMode()), [7, 8, 9, 10], 20, Drafting(0.001, 0.001)))
    expected, told = found
    assert set(told.tokens) == set(expected.tokens)  # roundings differ
    assert told.forwards == expected.forwards


def head_of(change):
    """A random EAGLE-3 head that reads two of the target's layers."""
    model = small_eagle3(seed=1, kept=40 if change == "trimmed head" else None)
    if change == "int8":
        quantize_linear_layers(model)
    return model


@pytest.mark.parametrize("change", [None, "int8", "trimmed head"])
def test_a_chain_beside_states_of_the_target_is_the_same(change):
    model = head_of(change)
    width = model.get_input_embeddings().weight.shape[1]
    step, chain = (CppEagleRuntime(copy.deepcopy(model)) for _ in range(2))
    told, offered = torch.randn(6, 3 * width), torch.randn(6, width)
    # torch rounds activations beside int8 matrices, the kernels do not
    plain = TransformersEagleRuntime(unquantized(copy.deepcopy(model))).reduced(told)
    torch.testing.assert_close(chain.reduced(told), plain, atol=1e-4, rtol=1e-4)
    for runtime in (step, chain):
        runtime.offer(offered[:2])
        runtime.forward([5, 6])
        runtime.offer(offered[2:])
    chosen = chain.chain([7, 8, 9, 10], 5, 0.0)
    assert len(chosen) == 5
    logits = step.forward([7, 8, 9, 10], keep=1)
    for token in chosen:  # roundings differ
        assert float(logits[0, token]) >= float(logits.max()) - 1e-3
        last, logits = step.hidden_states(), step.forward([token])
    torch.testing.assert_close(chain.hidden_states(), last[-1:], atol=1e-3, rtol=1e-3)


def test_room_that_an_exit_has_made_is_not_taken_for_the_targets():
    target = compiled(small_model("llama"))
    text = [3 + 7 * place % 57 for place in range(90)]
    whole = target.forward(text)
    target = compiled(small_model("llama"))
    target.forward(text[:5])
    exit_ = target.first_layers(1)
    exit_.forward(text[5:])
    exit_.rollback(85)
    torch.testing.assert_close(target.forward(text[5:]), whole[5:], atol=1e-5, rtol=1e-4)


def test_an_exit_leaves_nothing_where_the_target_has_told_its_layers_outputs():
    target = compiled(small_model("llama"))
    target.keep_hidden_states((0, 1))
    target.forward([5, 6, 7, 8])
    told, before = target.hidden_states((0, 1)), target.hidden_states((0, 1)).clone()
    kept = [states.clone() for states in target._states.by_layer.values()]
    target.first_layers(2).forward([9, 10, 11])
    assert torch.equal(told, before)
    assert all(
        torch.equal(now, then) for now, then in zip(target._states.by_layer.values(), kept, strict=True)
    )


def test_a_runtime_says_whether_it_drafts_by_itself():
    """Not where capping gives the tokens that a trimmed head leaves out a logit, or with outputs of layers to keep;
    transformers' own forward never."""
    for model, forward in (
        (changed("gemma2", "trimmed head"), "cpp"),
        (small_model("llama"), "transformers"),
    ):
        able = runtime_by(model, forward).capabilities
        assert not any((able.chain, able.chain_stops, able.tree_growth))
    runtime = compiled(small_model("llama"))
    runtime.keep_hidden_states()
    assert runtime.capabilities.chain
    runtime.keep_hidden_states((1,))
    assert not runtime.capabilities.chain


def test_more_unseen_tokens_than_one_call_reads_are_read_before():
    unseen = [3 + place * 7 % 57 for place in range(MAX_TOKENS + 9)]
    for make in (
        lambda: compiled(small_model("llama")),
        lambda: CppEagleRuntime(small_eagle3()),
    ):
        whole, parts = make(), make()
        if hasattr(whole, "offer"):
            states = torch.randn(
                len(unseen), whole._states._width, generator=torch.Generator().manual_seed(4)
            )
            whole.offer(states)
            parts.offer(states)
        logits = whole.forward(unseen, keep=1)
        assert parts.chain(unseen, 1) == logits.argmax(-1).tolist()
        assert parts.length == len(unseen)


NATIVE = {
    (name, stored): compiled(make(decoder(name)))
    for name in FAMILIES
    for stored, make in {
        "fp32": lambda model: model,
        "bf16": lambda model: model.to(torch.bfloat16),
        "blocks": lambda model: in_blocks(model)[0],
    }.items()
}


def odd_llama(**changed):
    """No dimension is a multiple of what the kernels read at once."""
    torch.manual_seed(3)
    shape = {
        "hidden_size": 54,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 22,
        "vocab_size": 61,
        "initializer_range": 0.3,
    }
    return LlamaForCausalLM(LlamaConfig(**(shape | changed))).eval()


@pytest.mark.parametrize(
    "changed", [{}, {"head_dim": 80}, {"num_key_value_heads": 6}, {"num_key_value_heads": 1}, {"head_dim": 2}]
)
@pytest.mark.parametrize("tokens", [1, 2, 5, 7, 13, 40])
def test_the_kernels_know_every_shape(changed, tokens):
    model = odd_llama(**changed)
    sequence = [3 + place * 7 % 50 for place in range(tokens + 21)]
    runtime = compiled(model)
    runtime.forward(sequence[:21])
    torch.testing.assert_close(
        runtime.forward(sequence[21:]), own_logits(model, sequence)[21:], atol=2e-4, rtol=1e-4
    )


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_the_kernels_give_the_same_bits_with_any_number_of_threads(threads):
    runtime, before = compiled(odd_llama()), torch.get_num_threads()
    expected = runtime.forward(list(range(3, 30)))
    torch.set_num_threads(threads)
    try:
        runtime.reset()
        assert torch.equal(runtime.forward(list(range(3, 30))), expected)
    finally:
        torch.set_num_threads(before)
