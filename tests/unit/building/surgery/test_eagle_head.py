"""EAGLE-3 heads as models: what they compute, published ones, and new ones of several families of targets."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from draftrank.building.surgery.eagle_head import (
    head_skeleton,
    model_of_published,
    new_eagle3_head,
    norm_before_residual,
    published_layers,
    published_of,
)
from draftrank.building.working_draft import WorkingDraft
from draftrank.engine.backends.registry import open_eagle_runtime
from draftrank.errors import BuildError, IncompatibleDraftError
from draftrank.models.architecture import Architecture
from draftrank.models.eagle_layouts import read_published_head
from draftrank.models.forms import Eagle3Form
from eagle_heads import (
    EAGLE3_CONFIG,
    EAGLE_CONFIG,
    HIDDEN,
    IDS,
    VOCABULARY,
    eagle3_forward,
    eagle3_weights,
    eagle_weights,
    save_head,
)
from models import small_eagle3, small_model


def doubled(head):
    return {name: value.double() for name, value in head.tensors.items()}


@pytest.mark.parametrize("backend", ["transformers", "cpp"])
@pytest.mark.parametrize("norm_before_residual", [False, True])
def test_the_head_computes_what_is_published(backend, norm_before_residual):
    model = small_eagle3(norm_before_residual=norm_before_residual)
    form = Eagle3Form(layers=(0, 1), norm_before_residual=norm_before_residual)
    published = published_of(model, form)
    embedding, tokens = model.get_input_embeddings().weight.double(), [5, 9, 31, 7, 7, 40, 12]
    told = torch.randn(len(tokens), 3 * 32, generator=torch.Generator().manual_seed(1))

    def by_paper(tokens, states):
        return eagle3_forward(
            doubled(published), published.config, embedding[tokens], states,
            norm_before_residual=norm_before_residual,
        )  # fmt: skip

    runtime = open_eagle_runtime(model, backend)
    beside = runtime.reduced(told)
    runtime.offer(beside)
    logits = runtime.forward(tokens)
    own, expected = by_paper(tokens, told[:, :64].double())
    torch.testing.assert_close(logits.double(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(runtime._own_states().double(), own, atol=1e-4, rtol=1e-4)
    # A token further ahead reads what the layer gave for the one before it, and `fc` has no part in that.
    published.tensors["fc.weight"] = torch.eye(32)
    _, expected = by_paper([*tokens, 3], torch.cat([beside.double(), own[-1:]]))
    torch.testing.assert_close(runtime.forward([3])[-1].double(), expected[-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layer", ["midlayer", "layers.0"])
@pytest.mark.parametrize("change", ["as it is", "all tokens", "the target's head", "biases"])
def test_a_published_head_computes_the_same_as_a_model(tmp_path, layer, change):
    weights, config = eagle3_weights(layer), dict(EAGLE3_CONFIG)
    every_token = change in ("all tokens", "the target's head")
    if every_token:
        for name in ("d2t", "t2d", "lm_head.weight"):
            del weights[name]
        config["draft_vocab_size"] = VOCABULARY
        if change == "all tokens":
            weights["lm_head.weight"] = torch.randn(VOCABULARY, HIDDEN)
    elif change == "biases":
        weights["fc.bias"] = torch.randn(HIDDEN)
        for part in "qkv":
            name = f"{layer}.self_attn.{part}_proj"
            weights[f"{name}.bias"] = torch.randn(len(weights[f"{name}.weight"]))
    head = read_published_head(save_head(tmp_path / "head", config, weights))
    torch.manual_seed(3)
    target = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=HIDDEN, intermediate_size=24, vocab_size=VOCABULARY, num_hidden_layers=8, num_attention_heads=4
        )
    ).eval()  # fmt: skip
    model, forms = model_of_published(head, target)
    assert forms[0].layers == (1, 3, 4)
    tokens, told = [3, 5, 0, 39, 8], torch.randn(5, 4 * HIDDEN)
    runtime = open_eagle_runtime(model, "transformers" if change == "biases" else "cpp")
    runtime.offer(runtime.reduced(told))
    logits = runtime.forward(tokens)
    all_weights = doubled(head)
    ids = torch.arange(VOCABULARY) if every_token else IDS
    all_weights.setdefault("lm_head.weight", target.lm_head.weight[ids].double())
    embedded = target.get_input_embeddings().weight[tokens].double()
    _, expected = eagle3_forward(all_weights, head.config, embedded, told[:, : 3 * HIDDEN].double())
    torch.testing.assert_close(logits[:, ids].double(), expected, atol=1e-4, rtol=1e-4)
    assert int(logits.isfinite().sum()) == expected.numel()
    if change != "biases":  # those of a matrix without one are written as zeros
        again = published_of(model, forms[0])
        assert LlamaConfig(**again.config).to_dict() == LlamaConfig(**head.config).to_dict()
        for name, value in head.tensors.items():
            assert torch.equal(again.tensors[name], value)


def test_what_is_made_for_another_target_is_refused(tmp_path):
    head = read_published_head(save_head(tmp_path, EAGLE3_CONFIG, eagle3_weights()))
    with pytest.raises(IncompatibleDraftError, match="made for another target"):
        model_of_published(head, small_model("llama", layers=8))
    first = read_published_head(save_head(tmp_path / "first", EAGLE_CONFIG, eagle_weights()))
    target = LlamaForCausalLM(
        LlamaConfig(hidden_size=HIDDEN, vocab_size=VOCABULARY, num_hidden_layers=8, num_attention_heads=4)
    )
    with pytest.raises(BuildError, match="first EAGLE architecture"):
        model_of_published(first, target)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "qwen3", "phi3", "mixtral"])
def test_a_new_head_begins_as_the_layer_of_its_target(family):
    target = small_model(family, layers=3)
    shape = Architecture.of(target)
    head, form = new_eagle3_head(target, (0, 1))
    assert form.layers == (0, 1)
    layer = head.model.layers[0]
    assert head.config.hidden_size == target.config.hidden_size
    assert torch.equal(head.get_input_embeddings().weight, shape.embedding(target).weight)
    assert torch.equal(head.get_output_embeddings().weight, shape.head(target).weight)
    states = torch.randn(4, 3 * 32)
    torch.testing.assert_close(head.feature_fusion.reduce(states), states[:, 32:64])
    for linear_layer in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
        assert not linear_layer.weight[:, :32].any()
    if family == "llama":
        # Without embeddings to read it is the target's last layer, norm and head.
        ids, hidden = torch.randint(3, 60, (1, 6)), torch.randn(1, 6, 32)
        kept = shape.first_layers(target, 3)
        kept.model.layers = target.model.layers[2:]
        kept.config.num_hidden_layers = kept.model.config.num_hidden_layers = 1
        expected = kept(inputs_embeds=hidden, use_cache=False).logits
        found = Architecture.of(head).hidden_states(head, ids, hidden)
        torch.testing.assert_close(head.lm_head(found), expected, atol=1e-4, rtol=1e-4)


def test_a_skeleton_has_the_shapes_of_the_head():
    target = small_model("llama", layers=3)
    head, _ = new_eagle3_head(target, (0, 1, 2))
    shapes = {name: value.shape for name, value in head.state_dict().items()}
    assert {name: value.shape for name, value in head_skeleton(target).state_dict().items()} == shapes


@pytest.mark.parametrize("depth", range(1, 40))
def test_published_layers_are_three_or_refused(depth):
    if depth < 7:
        with pytest.raises(BuildError, match="name them in aux_hidden_states"):
            published_layers(depth)
    else:
        first, middle, last = published_layers(depth)
        # Hugging Face's hidden_states[i] is what layer i reads: the output of layer i - 1.
        assert (first + 1, middle + 1, last + 1) == (2, depth // 2, depth - 3)
        assert first < middle < last


def test_a_head_that_adds_to_the_normed_state_computes_the_same_for_states_of_the_mean_size():
    target = small_model("llama", layers=3)
    model = small_eagle3(layers=(0, 1))
    plain = copy.deepcopy(model)
    draft = WorkingDraft(model, None, [Eagle3Form(layers=(0, 1))])
    text = torch.randint(3, 60, (12, 20))
    size = norm_before_residual(draft, target, text)
    assert draft.forms == [Eagle3Form(layers=(0, 1), norm_before_residual=True)]
    with torch.inference_mode():
        kept = target(text, output_hidden_states=True).hidden_states
        states = plain.feature_fusion.fc(torch.cat([kept[1], kept[2]], -1))[:, 4:]
    assert size == pytest.approx(float(states.pow(2).mean().sqrt()), rel=1e-4)

    ids, shape = torch.randint(3, 60, (2, 9)), Architecture.of(plain)
    state = torch.randn(2, 9, 32)
    state *= size / state.pow(2).mean(-1, keepdim=True).sqrt()
    expected = shape.hidden_states(plain, ids, state)
    torch.testing.assert_close(shape.hidden_states(model, ids, state), expected, atol=1e-3, rtol=1e-3)
    # However large the state is: the law does not hold for a layer that adds to the state.
    torch.testing.assert_close(shape.hidden_states(model, ids, 7 * state), expected, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(shape.hidden_states(plain, ids, 7 * state), expected, atol=1e-2)
    with pytest.raises(BuildError, match="behind eagle_head, once"):
        norm_before_residual(draft, target, text)


def test_a_draft_model_has_no_state_to_norm():
    with pytest.raises(BuildError, match="behind eagle_head"):
        norm_before_residual(WorkingDraft(small_model("llama"), None), small_model("llama"), torch.ones(2, 8))
