"""Every family's parts are found, and its layers can be cut: what is saved computes what the kept layers compute."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, T5Config, T5ForConditionalGeneration

from draftrank.engine.backends.registry import open_runtime
from draftrank.errors import BuildError, IncompatibleDraftError
from draftrank.models import discovery
from draftrank.models.architecture import Architecture
from draftrank.models.architecture_checks import require_every_layer
from draftrank.models.discovery import NormRule, norm_rule
from draftrank.models.forms import quantize_linear_layers
from models import EVERY_FAMILY, small_model

IDS = torch.arange(3, 43).reshape(2, 20)
SAMPLE = (
    "bloom",
    "cohere2",
    "deepseek_v3",
    "falcon",
    "gemma2",
    "glm4",
    "gpt_neox",
    "gpt_oss",
    "granite",
    "lfm2",
    "mamba2",
    "mixtral",
    "olmo2",
    "opt",
    "phi3",
    "qwen2_moe",
    "qwen3",
    "recurrent_gemma",
    "starcoder2",
)
FAMILIES = [pytest.param(name, marks=() if name in SAMPLE else pytest.mark.nightly) for name in EVERY_FAMILY]
INDEX_MATTERS = {"minimax": "derives what a layer computes from its index"}
"""Families whose layers cannot be moved, and what is said of them."""


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_the_parts_of_a_model_compute_what_it_computes(name):
    model = small_model(name)
    shape = Architecture.of(model)
    own = model(IDS, use_cache=False).logits
    hidden = shape.hidden_states(model, IDS)
    torch.testing.assert_close(shape.logits(model, hidden), own)
    assert shape.embedding(model) is model.get_input_embeddings()
    assert shape.head(model) is model.get_output_embeddings()
    assert len(shape.layers(model)) == len(shape.blocks) == 3
    seen = []
    shape.norm(model).register_forward_hook(lambda _m, _a, output: seen.append(output))
    torch.testing.assert_close(shape.hidden_states(model, IDS), seen[-1])


@pytest.mark.parametrize("name", ["gemma4_text", "kimi_linear"])
@torch.inference_mode()
def test_a_head_that_asks_for_more_than_states_gives_logits_and_vectors_are_no_matrices(name):
    model = small_model(name)
    shape = Architecture.of(model)
    logits = shape.logits(model, shape.hidden_states(model, IDS))
    torch.testing.assert_close(logits, model(IDS, use_cache=False).logits)
    assert all(matrix.weight.ndim == 2 for matrix in shape.linear_layers(model).values())


def test_a_model_with_parts_made_for_all_its_layers_cannot_run_the_first_ones():
    with pytest.raises(
        IncompatibleDraftError, match="first layers of this gemma4_text model do not run alone"
    ):
        open_runtime(small_model("gemma4_text"), "transformers").first_layers(2)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_layer_does_something(name):
    model = small_model(name)
    require_every_layer(model, Architecture.of(model).layers_name)


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_a_cut_model_opens_again_and_computes_what_its_layers_do(name, tmp_path):
    model = small_model(name)
    shape = Architecture.of(model)
    if name in INDEX_MATTERS:
        with pytest.raises(BuildError, match=INDEX_MATTERS[name]):
            shape.keep_layers(model, (0, 2))
        return
    expected = without_layer(model, shape, 1)
    shape.keep_layers(model, (0, 2))
    torch.testing.assert_close(model(IDS, use_cache=False).logits, expected)
    model.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert opened.config.num_hidden_layers == len(Architecture.of(opened).blocks) == 2
    torch.testing.assert_close(opened(IDS, use_cache=False).logits, expected)


@torch.inference_mode()
def test_a_layer_with_two_attention_layers_is_one():
    model = small_model("longcat_flash")
    shape = Architecture.of(model)
    expected = without_layer(model, shape, 1)
    shape.keep_layers(model, (0, 2))
    assert (model.config.num_layers, model.config.num_hidden_layers) == (2, 4)
    assert [part.layer_idx for layer in shape.layers(model) for part in layer.self_attn] == [0, 1, 2, 3]
    torch.testing.assert_close(model(IDS).logits, expected)


def without_layer(model, shape, index):
    """Logits of a model with a layer made the identity, which leaves nothing else changed."""
    hook = shape.layers(model)[index].register_forward_hook(
        lambda _m, given, output: given[0] if isinstance(output, torch.Tensor) else (given[0], *output[1:])
    )
    logits = model(IDS, use_cache=False).logits
    hook.remove()
    return logits


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_a_view_of_the_first_layers_runs_them_alone(name):
    model = small_model(name)
    shape = Architecture.of(model)
    before = model(IDS, use_cache=False).logits
    view = shape.first_layers(model, 2)
    torch.testing.assert_close(view(IDS, use_cache=False).logits, without_layer(model, shape, 2))
    assert torch.equal(model(IDS, use_cache=False).logits, before)


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_every_family_is_quantized(name):
    model = small_model(name)
    own = model(IDS, use_cache=False).logits
    quantize_linear_layers(model)
    found = model(IDS, use_cache=False).logits
    if name not in (
        "mamba",
        "mamba2",
        "falcon_mamba",
    ):  # their code reads the weights of all but the smallest
        assert not torch.equal(found, own)
    assert torch.cosine_similarity(found, own, -1).mean() > 0.7


@pytest.mark.parametrize(
    ("name", "mixing", "gates", "experts"),
    [
        ("llama", "separate", "separate", False),
        ("phi3", "fused", "fused", False),
        ("glm4", "separate", "fused", False),
        ("gpt2", "fused", "none", False),
        ("opt", "separate", "none", False),
        ("mamba2", "other", "none", False),
        ("gpt_oss", "separate", "none", True),
    ],
)
def test_layers_are_told_apart_by_their_parts(name, mixing, gates, experts):
    block = Architecture.of(small_model(name)).block
    assert (block.mixing, block.gates, block.experts) == (mixing, gates, experts)


def test_layers_may_differ():
    shape = Architecture.of(small_model("deepseek_v3"))
    assert [block.experts for block in shape.blocks] == [False, True, True]
    assert {block.mixing for block in shape.blocks} == {"latent"}
    with pytest.raises(BuildError, match="differ from one another"):
        _ = shape.block


@pytest.mark.parametrize(
    ("name", "kind", "offset", "grows"),
    [
        ("llama", "rms", 0.0, False),
        ("gemma2", "rms", 1.0, True),
        ("gemma3", "rms", 1.0, True),
        ("gpt2", "layer", 0.0, False),
        ("qwen3", "rms", 0.0, False),
        ("granite", "rms", 0.0, False),
    ],
)
def test_norms_and_embeddings_are_told_by_what_they_compute(name, kind, offset, grows):
    shape = Architecture.of(small_model(name))
    assert (shape.norm_kind, shape.norm_offset, shape.embedding_grows_with_width) == (kind, offset, grows)


def test_norms_that_are_neither_kind_are_refused():
    with pytest.raises(BuildError, match="neither an RMS norm nor a layer norm"):
        norm_rule(nn.Tanh(), 8)
    assert norm_rule(nn.LayerNorm(8), 8) == NormRule("layer", 0.0)


def test_models_with_an_encoder_are_refused():
    config = T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=2, d_kv=4, vocab_size=9)
    with pytest.raises(BuildError, match="has an encoder beside its decoder"):
        Architecture.of(T5ForConditionalGeneration(config))


def test_layers_that_are_not_found_are_named_by_hand(monkeypatch):
    model = small_model("llama")
    stages = model.model.layers
    del model.model.layers
    model.model.stages = nn.ModuleList([*stages, nn.Identity()])
    shape = Architecture.of(model)
    assert shape.head(model) is model.lm_head
    for ask in (lambda: shape.blocks, lambda: shape.layers(model), lambda: shape.first_layers(model, 1)):
        with pytest.raises(BuildError, match=r"'llama' are not found.*OVERRIDES.*such as quantize"):
            ask()
    model.model.stages = stages
    assert Architecture.of(model).layers_name == "model.stages"
    monkeypatch.setitem(discovery.OVERRIDES, "llama", {"final_norm": "last"})
    model.model.last = nn.RMSNorm(32)
    assert Architecture.of(model).norm(model) is model.model.last
    assert isinstance(model.config, LlamaConfig)
