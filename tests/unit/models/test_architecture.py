"""Cutting a model by layer gives the very model one would build by hand from these layers."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
)

from draftrank.errors import BuildError
from draftrank.models.architecture import Architecture
from models import ARCHITECTURES, small_model

IDS = torch.arange(3, 43).reshape(2, 20)
CASES = [(0, 3), (1, 2, 4), (2,), (5,), (0, 1, 2, 3, 4, 5)]


def by_hand(model, kept):
    """The kept layers' weights under new numbers, in a model made from a shallower configuration."""
    config = copy.deepcopy(model.config)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[index] for index in kept]
    config.num_hidden_layers = len(kept)
    fresh = type(model)(config).eval()
    place = ".h." if config.model_type == "gpt2" else ".layers."
    state = {}
    for name, tensor in model.state_dict().items():
        head, found, tail = name.partition(place)
        if found:
            number, _, rest = tail.partition(".")
            if int(number) not in kept:
                continue
            name = f"{head}{place}{kept.index(int(number))}.{rest}"
        state[name] = tensor
    fresh.load_state_dict(state)
    return fresh


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("kept", CASES)
@torch.inference_mode()
def test_keeping_layers_equals_a_model_made_of_them(name, kept, tmp_path):
    model = small_model(name, layers=6)
    expected = by_hand(model, kept)(IDS).logits
    Architecture.of(model).keep_layers(model, kept)
    torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=0)
    torch.testing.assert_close(token_by_token(model), expected, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert opened.config.num_hidden_layers == len(kept)
    torch.testing.assert_close(opened(IDS).logits, expected, rtol=0, atol=0)


def token_by_token(model):
    """Decoding with a cache works only if every layer knows its new number."""
    cache = DynamicCache(config=model.config)
    return torch.cat([model(IDS[:, i : i + 1], past_key_values=cache).logits for i in range(20)], dim=1)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("count", [1, 2, 6])
@torch.inference_mode()
def test_a_view_of_the_first_layers_equals_the_cut_model_and_leaves_the_original(name, count):
    model = small_model(name, layers=6)
    before, config = model(IDS).logits, model.config.to_dict()
    view = Architecture.of(model).first_layers(model, count)
    expected = by_hand(model, tuple(range(count)))(IDS).logits
    torch.testing.assert_close(view(IDS).logits, expected, rtol=0, atol=0)
    torch.testing.assert_close(token_by_token(view), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(model(IDS).logits, before)
    assert model.config.to_dict() == config
    assert view.config.num_hidden_layers == view.base_model.config.num_hidden_layers == count
    assert len(getattr(view.config, "layer_types", None) or range(count)) == count
    assert len(Architecture.of(model).layers(model)) == 6
    ours = {parameter.data_ptr() for parameter in model.parameters()}
    assert {parameter.data_ptr() for parameter in view.parameters()} <= ours


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.inference_mode()
def test_hidden_states_and_head_give_the_models_logits(name):
    model = small_model(name)
    shape = Architecture.of(model)
    hidden = shape.hidden_states(model, IDS)
    torch.testing.assert_close(shape.logits(model, hidden), model(IDS).logits, rtol=0, atol=0)
    assert shape.embedding(model) is model.get_input_embeddings()
    assert shape.head(model) is model.get_output_embeddings()
    captured = []
    shape.norm(model).register_forward_hook(lambda _m, _a, output: captured.append(output))
    assert torch.equal(shape.hidden_states(model, IDS), captured[0])


@torch.inference_mode()
def test_capped_logits_are_capped():
    model = small_model("gemma3")
    model.config.final_logit_softcapping = 3.0
    shape = Architecture.of(model)
    expected = model(IDS).logits
    assert expected.abs().max() <= 3.0
    torch.testing.assert_close(shape.logits(model, shape.hidden_states(model, IDS)), expected)


@pytest.mark.parametrize("indices", [(), (0, 0), (2, 1), (0, 6), (-1, 2)])
def test_layers_that_are_not_there_are_refused(indices):
    model = small_model("llama", layers=6)
    with pytest.raises(BuildError, match="layers 0 to 5"):
        Architecture.of(model).keep_layers(model, indices)
    assert len(model.model.layers) == 6


@pytest.mark.parametrize("count", [0, 7])
def test_views_deeper_than_the_model_are_refused(count):
    model = small_model("llama", layers=6)
    with pytest.raises(BuildError, match="has 6 layers"):
        Architecture.of(model).first_layers(model, count)


def test_layers_that_depend_on_their_depth_are_not_moved():
    config = GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=61, scale_attn_by_inverse_layer_idx=True)
    model = GPT2LMHeadModel(config).eval()
    with pytest.raises(BuildError, match="from its index"):
        Architecture.of(model).keep_layers(model, (1,))


def test_encoders_are_refused():
    config = BertConfig(hidden_size=8, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    with pytest.raises(BuildError, match="head over a vocabulary"):
        Architecture.of(BertModel(config))
