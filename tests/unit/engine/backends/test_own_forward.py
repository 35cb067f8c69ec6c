"""Models of many architectures are computed as transformers computes them, or refused with one sentence."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.ao.nn.quantized.dynamic import Linear as DynamicInt8Linear
from transformers import (
    DeepseekV32Config,
    DeepseekV32ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Zamba2Config,
    Zamba2ForCausalLM,
)

from draftrank.building.surgery.eagle_head import new_eagle3_head
from draftrank.engine.backends import own_forward, registry
from draftrank.engine.backends.own_forward import check_forward, check_trees
from draftrank.engine.backends.registry import load_runtime, open_eagle_runtime, open_runtime, why_not
from draftrank.engine.backends.transformers import runtime as torch_runtime
from draftrank.engine.backends.transformers.attention import NAME, grouped_attention
from draftrank.engine.backends.transformers.runtime import TransformersRuntime
from draftrank.engine.backends.transformers.snapshot_cache import SnapshotCache
from draftrank.engine.token_tree import TokenTree
from draftrank.errors import IncompatibleDraftError, UnsupportedModelError
from draftrank.models.attention_windows import FULL, SLIDING, layer_kinds
from draftrank.models.forms import TrimmedHead
from draftrank.models.loading import quantize_linear_layers
from draftrank.models.matrices import matrix
from families import FAMILIES, NOT_SUPPORTED, READS_NO_TREES, WITH_STATE
from models import ARCHITECTURES, own_logits, save_small_target, small_eagle3, small_model
from runtimes import path_to, runtime_by

EVERY = (*ARCHITECTURES, *FAMILIES)
TEXT = torch.randint(3, 61, (40,), generator=torch.Generator().manual_seed(1)).tolist()
"""Longer than every window and chunk."""


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("name", [*EVERY, *READS_NO_TREES, *WITH_STATE])
def test_every_family_is_read_in_pieces_and_after_a_rollback_as_by_its_own_forward(name):
    own = small_model(name)
    runtime = TransformersRuntime(copy.deepcopy(own))
    check_forward(runtime)
    assert runtime.length == 0
    rows = [runtime.forward(TEXT[:30], keep=1), runtime.forward(TEXT[30:31]).clone()]
    runtime.forward([5, 6, 7])
    runtime.rollback(3)
    rows.append(runtime.forward(TEXT[31:]))
    assert_close(torch.cat(rows), own_logits(own, TEXT)[29:])


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("held", [2, 40])
def test_every_branch_of_a_tree_is_read_as_a_chain_by_the_models_own_forward(name, held):
    """Before and behind the point where windows begin to slide, and as long as a window itself."""
    own = small_model(name)
    runtime = TransformersRuntime(copy.deepcopy(own))
    runtime.forward(TEXT[:held])
    tokens, parents = (5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25), (-1, -1, 0, 1, 3, 4, 5, 6, 7, 8)
    logits = runtime.forward(tokens, tree=TokenTree.behind(parents))
    for place in range(len(tokens)):
        path = [tokens[one + 1] for one in path_to(parents, place - 1)]
        assert_close(logits[place], own_logits(own, [*TEXT[:held], tokens[0], *path])[-1])
    runtime.commit(held, (0, 2, 4, 5))
    kept = [*TEXT[:held], 5, 9, 13, 15]
    assert_close(runtime.forward([30, 31]), own_logits(own, [*kept, 30, 31])[-2:])
    check_trees(runtime)


@pytest.mark.parametrize("name", READS_NO_TREES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trees_are_refused_where_layers_cannot_be_told_of_them(name, dtype):
    """In bf16 too, where what the biases of some tokens are wrong by is less than rounding."""
    runtime = TransformersRuntime(small_model(name).to(dtype))
    with pytest.raises(
        UnsupportedModelError, match=r"trees of tokens cannot be read.*branch_above_probability"
    ):
        check_trees(runtime)


@pytest.mark.parametrize("name", [*NOT_SUPPORTED, "openai-gpt"])
def test_models_that_keep_a_state_outside_of_a_cache_are_refused_when_they_are_opened(tmp_path, name):
    with pytest.raises(
        UnsupportedModelError,
        match=rf"'{name}' is not supported: it(s forward takes no cache| keeps a state) .*; use another",
    ):
        load_runtime(save_small_target(tmp_path, name), "fp32", "cpu", "transformers")


def test_a_state_that_is_not_restored_is_noticed(monkeypatch):
    runtime = TransformersRuntime(small_model("lfm2"))
    check_forward(runtime)
    monkeypatch.setattr(
        SnapshotCache, "rollback", lambda cache, count: cache._tokens.__delitem__(slice(-count, None))
    )
    with pytest.raises(UnsupportedModelError, match="logits differ by"):
        check_forward(runtime)


def test_a_single_token_that_transformers_computes_otherwise_than_several_is_noticed():
    """Zamba2 bounds its time steps only where it reads several."""
    shape = {"mamba_headdim": 8, "mamba_d_state": 8, "mamba_ngroups": 1, "chunk_size": 16, "n_mamba_heads": 8}
    torch.manual_seed(0)
    config = Zamba2Config(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, attention_head_dim=16, max_position_embeddings=256, initializer_range=0.3,
        layers_block_type=["mamba", "hybrid", "mamba"], num_mem_blocks=1, **shape,
    )  # fmt: skip
    with pytest.raises(UnsupportedModelError, match=r"zamba2.*logits differ by"):
        open_runtime(Zamba2ForCausalLM(config).eval(), "transformers")


def test_attention_that_a_model_knows_by_name_only_is_computed_by_transformers():
    """DeepSeek's sparse attention looks whether it is `sdpa`."""
    torch.manual_seed(0)
    config = DeepseekV32Config(
        vocab_size=61, hidden_size=32, intermediate_size=48, moe_intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, kv_lora_rank=8, q_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=8, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
        first_k_dense_replace=1, index_topk=8, index_head_dim=16, index_n_heads=16, max_position_embeddings=256,
        initializer_range=0.3,
    )  # fmt: skip
    runtime = open_runtime(DeepseekV32ForCausalLM(config).eval(), "transformers")
    assert runtime.model.config._attn_implementation == "sdpa"
    while runtime.compute_otherwise():
        pass
    runtime.model.set_attn_implementation(NAME)
    with pytest.raises(UnsupportedModelError, match=r"deepseek_v32.*logits differ by"):
        check_forward(runtime)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gpt_oss", "gemma2"])
def test_sinks_and_softcapping_left_out_are_noticed(name, dtype):
    runtime = TransformersRuntime(small_model(name).to(dtype))
    check_forward(runtime)
    runtime.model.set_attn_implementation(NAME)
    with pytest.raises(UnsupportedModelError, match=rf"{name}.*(logits differ by|softcap)"):
        check_forward(runtime)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_windows_left_out_are_noticed(dtype, monkeypatch):
    native = runtime_by(small_model("gemma3").to(dtype), "cpp")
    assert native.name == "cpp"
    check_forward(native)
    native._decoder._windows = dict.fromkeys(native._decoder._windows)
    with pytest.raises(UnsupportedModelError, match="cpp"):
        check_forward(native)
    monkeypatch.setattr(torch_runtime, "attention_windows", lambda _: {FULL: None})
    mistral = TransformersRuntime(small_model("mistral").to(dtype))
    check_forward(mistral)
    with pytest.raises(UnsupportedModelError, match="leave branch_above_probability out"):
        check_trees(mistral)


def test_a_rollback_that_leaves_a_token_is_noticed():
    runtime = TransformersRuntime(small_model("llama").to(torch.bfloat16))
    rollback = runtime.rollback
    runtime.rollback = lambda count: rollback(count - 1)
    with pytest.raises(UnsupportedModelError, match="as transformers computes it"):
        check_forward(runtime)


def test_logits_that_are_no_numbers_are_noticed():
    model = small_model("llama")
    runtime = TransformersRuntime(model)
    forward = runtime.forward
    runtime.forward = lambda *read: forward(*read) * float("nan")
    with pytest.raises(UnsupportedModelError, match="differ by"):
        check_forward(runtime)


def test_a_model_that_fails_is_refused_with_the_reason():
    model = small_model("llama")
    model.model.layers[1].mlp.up_proj = torch.nn.Linear(7, 48)
    with pytest.raises(UnsupportedModelError, match="cannot be run by the engine: RuntimeError"):
        open_runtime(model, "transformers")


def changed(name, change):
    model = small_model(name)
    if change == "int8":
        quantize_linear_layers(model, ())
    elif change == "trimmed":
        head = TrimmedHead(torch.nn.Linear(32, 20, bias=False), 20, 61)
        head.projection.weight.data.copy_(model.lm_head.weight[:20])
        model.lm_head = head.requires_grad_(False)
    elif change != "float32":
        model = model.to(getattr(torch, change))
    return model


@pytest.mark.parametrize("change", ["float32", "bfloat16", "float16", "int8", "trimmed"])
@pytest.mark.parametrize("forward", ["transformers", "cpp"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_backend_and_form_passes(name, forward, change):
    model = changed(name, change)
    if why_not(forward, model, registry._dtype_of(model), "cpu") is not None:
        assert forward == "cpp"
        assert name == "gpt2" or change == "float16"
        with pytest.raises(IncompatibleDraftError, match="the backend cpp cannot run it"):
            open_runtime(model, forward)
        return
    runtime = open_runtime(model, forward)
    check_trees(runtime)
    view = runtime_by(changed(name, change), forward).first_layers(2)
    check_forward(view)
    check_trees(view)


EXPERTS = (
    "deepseek_v3",
    "gpt_oss",
    "granitemoe",
    "hunyuan_v1_moe",
    "jetmoe",
    "mixtral",
    "olmoe",
    "phimoe",
    "qwen3_moe",
)


@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.parametrize("more", [-1, 1])
def test_a_token_that_a_model_of_experts_in_int8_keeps_or_loses_is_noticed(name, more):
    """Rounded activations send tokens to other experts, which changes logits as much as a lost token does."""
    runtime = open_runtime(changed(name, "int8"), "transformers")
    rollback = runtime.rollback
    runtime.rollback = lambda count: rollback(count + more)
    with pytest.raises(UnsupportedModelError, match=r"the logits differ by .* where rounding explains 0\.0"):
        check_forward(runtime)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba2", *EXPERTS])
def test_a_model_in_int8_is_checked_with_the_weights_that_it_has(name):
    """Computed here: 127.5 steps reach the largest weight of a row, which may be rounded to either side."""
    model, expected = changed(name, "int8"), small_model(name)
    for layer, part in model.named_modules():
        if isinstance(part, DynamicInt8Linear):
            plain = expected.get_submodule(layer)
            plain.weight = torch.nn.Parameter(plain.weight.clone(), requires_grad=False)  # a head of its own
            weight = matrix(plain)
            step = weight.abs().amax(1, keepdim=True).clamp(min=1e-9) / 127.5
            largest, used = weight.abs() > 127.4 * step, part.weight().dequantize()
            assert bool(((used - weight).abs() <= 0.51 * step).all())
            weight.copy_(torch.where(largest, used, (weight / step).round() * step))
    ids = torch.tensor([TEXT])
    with torch.inference_mode():
        wanted = expected(ids, use_cache=False).logits
        before = model(ids, use_cache=False).logits
        with own_forward._activations_as_they_are(model):
            torch.testing.assert_close(model(ids, use_cache=False).logits, wanted, atol=1e-4, rtol=1e-4)
        assert torch.equal(model(ids, use_cache=False).logits, before)
        assert not torch.allclose(before, wanted, atol=1e-2)


@pytest.mark.parametrize("forward", ["transformers", "cpp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm_before_residual", [False, True])
def test_eagle3_heads_pass(forward, dtype, norm_before_residual):
    head = small_eagle3(kept=40, norm_before_residual=norm_before_residual)
    runtime = open_eagle_runtime(head.to(dtype).requires_grad_(False), forward)
    check_trees(runtime)
    if runtime.name == "cpp":
        weight = runtime.model.model.layers[0].hidden_norm.weight
        weight[:] = weight.roll(1)  # what the runtime holds is of before
        with pytest.raises(UnsupportedModelError):
            check_forward(runtime)


@pytest.mark.parametrize("forward", ["transformers", "cpp"])
@pytest.mark.parametrize("seed", range(4))
def test_untrained_heads_pass(forward, seed):
    """They make nothing of embeddings yet, so that only their states tell how far rounding goes."""
    torch.manual_seed(seed)
    head, _ = new_eagle3_head(small_model("llama", layers=3), (0, 1))
    check_trees(open_eagle_runtime(head.to(torch.bfloat16), forward))


def test_short_contexts_shorten_the_text_and_the_shortest_are_not_compared():
    for window in (8, 16, 17, 24, 60):
        runtime = open_runtime(small_model("gpt2", window=window), "transformers")
        check_trees(runtime)
        assert runtime.length == 0


@pytest.mark.parametrize("forward", ["transformers", "cpp"])
def test_a_window_that_the_architecture_does_not_have_is_ignored(forward):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, initializer_range=0.3, sliding_window=8,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    assert layer_kinds(config) == [FULL, FULL]
    assert layer_kinds(small_model("mistral").config) == [SLIDING] * 3
    own, runtime = copy.deepcopy(model), open_runtime(model, forward)
    runtime.forward(TEXT)
    assert_close(runtime.forward((5, 6), tree=TokenTree.behind((-1,))), own_logits(own, [*TEXT, 5, 6])[-2:])


def test_arguments_that_grouped_attention_does_not_know_go_to_the_library():
    """Which adds this bias to the scores; as if it were not there, the answers would be other ones."""
    module = torch.nn.Module()
    module.num_key_value_groups = 2
    query, (key, value) = torch.randn(1, 4, 3, 8), torch.randn(2, 1, 2, 5, 8)
    mask, bias = torch.ones(1, 1, 3, 5, dtype=torch.bool), torch.randn(1, 4, 3, 5)
    found, _ = grouped_attention(module, query, key, value, mask, position_bias=bias)
    scores = query @ key.repeat_interleave(2, 1).mT / 8**0.5 + bias
    expected = (scores.softmax(-1) @ value.repeat_interleave(2, 1)).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="softcap"):
        grouped_attention(module, query, key, value, mask, softcap=2.0)
