"""New EAGLE-3 heads of targets of several families, and the head's forward by another computation."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear, rms_norm, silu, softmax

from draftrank.building.surgery.eagle_head import head_skeleton, new_eagle3_head, published_layers
from draftrank.engine.backends.registry import open_eagle_runtime
from draftrank.errors import BuildError
from draftrank.models.architecture import Architecture
from models import small_eagle3, small_model


def rotated(vectors, theta=10_000.0):
    """Rotary embedding of [length, heads, size], written with complex numbers (Su et al. 2021, arXiv:2104.09864)."""
    length, _, size = vectors.shape
    angles = torch.outer(torch.arange(length), theta ** (-torch.arange(0, size, 2) / size))
    halves = torch.complex(vectors[..., : size // 2].double(), vectors[..., size // 2 :].double())
    turned = halves * torch.exp(1j * angles)[:, None]
    return torch.cat([turned.real, turned.imag], -1)


def published_forward(state, tokens, states, *, norm_before_residual, epsilon=1e-6):
    """What the paper's head computes, fp64: own states and logits [length, ...] of tokens and states [length, hidden].

    Args:
        state: weights by the names of a model of transformers.
        tokens: ids [length].
        states: beside them, [length, hidden].
        norm_before_residual: see `Eagle3Layer`.
        epsilon: of the norms.
    """

    def weight(name):
        return state[f"model.layers.0.{name}.weight"].double()

    def normed(vectors, scale):
        return rms_norm(vectors, vectors.shape[-1:], eps=epsilon) * scale

    embedded = state["model.embed_tokens.weight"][tokens].double()
    states = states.double()
    beside = normed(states, weight("hidden_norm"))
    read = torch.cat([normed(embedded, weight("input_layernorm")), beside], -1)
    length, size, heads, groups = len(tokens), 8, 4, 2
    queries = rotated(linear(read, weight("self_attn.q_proj")).view(length, heads, size))
    keys = rotated(linear(read, weight("self_attn.k_proj")).view(length, groups, size))
    values = linear(read, weight("self_attn.v_proj")).view(length, groups, size)
    attended = torch.empty(length, heads, size, dtype=torch.float64)
    for head in range(heads):
        group = head // (heads // groups)
        scores = queries[:, head] @ keys[:, group].T / size**0.5
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
        attended[:, head] = softmax(scores, -1) @ values[:, group]
    hidden = (beside if norm_before_residual else states) + linear(
        attended.flatten(1), weight("self_attn.o_proj")
    )
    inner = normed(hidden, weight("post_attention_layernorm"))
    gated = silu(linear(inner, weight("mlp.gate_proj"))) * linear(inner, weight("mlp.up_proj"))
    own = hidden + linear(gated, weight("mlp.down_proj"))
    return own, linear(normed(own, state["model.norm.weight"].double()), state["lm_head.weight"].double())


@pytest.mark.parametrize("backend", ["transformers", "cpp"])
@pytest.mark.parametrize("norm_before_residual", [False, True])
def test_the_head_computes_what_is_published(backend, norm_before_residual):
    head = small_eagle3(norm_before_residual=norm_before_residual)
    state, tokens = head.state_dict(), [5, 9, 31, 7, 7, 40, 12]
    told = torch.randn(len(tokens), 3 * 32, generator=torch.Generator().manual_seed(1))
    beside = linear(told[:, :64], state["feature_fusion.fc.weight"])
    runtime = open_eagle_runtime(head, backend)
    torch.testing.assert_close(runtime.reduced(told).float(), beside, atol=1e-4, rtol=1e-4)
    runtime.offer(beside)
    logits = runtime.forward(tokens)
    own, expected = published_forward(state, tokens, beside, norm_before_residual=norm_before_residual)
    torch.testing.assert_close(logits.double(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(runtime._own_states().double(), own, atol=1e-4, rtol=1e-4)
    # A token further ahead reads what the layer gave for the one before it.
    longer = torch.cat([beside, own[-1:].float()])
    _, expected = published_forward(state, [*tokens, 3], longer, norm_before_residual=norm_before_residual)
    torch.testing.assert_close(runtime.forward([3])[-1].double(), expected[-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "qwen3", "phi3", "mixtral"])
def test_a_new_head_begins_as_the_layer_of_its_target(family):
    target = small_model(family, layers=3)
    shape = Architecture.of(target)
    head, form = new_eagle3_head(target, (0, 1), 2)
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
    head, _ = new_eagle3_head(target, (0, 1, 2), 2)
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
