"""A narrower model computes what the wide one would with the dropped channels at zero."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from draftrank.building.surgery import width
from draftrank.building.surgery.importance import feed_forward_scores, head_scores, hidden_scores
from draftrank.building.surgery.width import prune_feed_forward, prune_heads, prune_hidden
from draftrank.errors import BuildError
from draftrank.models.matrices import matrix

ARCHITECTURES = ("llama", "gemma3", "gpt2")
GROUPED = ("llama", "gemma3")
IDS = torch.arange(3, 43).reshape(2, 20)
TEXT = torch.randint(3, 60, (9, 24), generator=torch.Generator().manual_seed(1))
MEASURES = ("magnitude", "activation", "taylor")


def text_for(importance):
    return None if importance == "magnitude" else TEXT


def parts(draft, layer, name):
    return draft.architecture.layers(draft.model)[layer].get_submodule(name)


def zero_inputs(module, dropped):
    matrix(module)[:, dropped] = 0


def reopened(model, folder):
    """What the saved folder gives."""
    model.save_pretrained(folder)
    opened = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(p.numel() for p in opened.parameters()) == sum(p.numel() for p in model.parameters())
    return opened.eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("importance", MEASURES)
def test_fewer_feed_forward_channels(make_context, make_draft, tmp_path, architecture, importance):
    draft = make_draft(make_context(architecture))
    block, before = draft.architecture.block, copy.deepcopy(draft.model)
    scores = feed_forward_scores(draft, importance, text_for(importance))
    with torch.no_grad():
        for index, layer in enumerate(draft.architecture.layers(before)):
            dropped = scores[index].argsort(descending=True)[20:]
            zero_inputs(layer.get_submodule(f"{block.feed_forward}.{block.feed_forward_output}"), dropped)
        prune_feed_forward(draft, 20, importance, text_for(importance))
        opened = reopened(draft.model, tmp_path)
        torch.testing.assert_close(opened(IDS).logits, before(IDS).logits, rtol=1e-4, atol=1e-4)
    shapes = {
        matrix(parts(draft, 0, f"{block.feed_forward}.{name}")).shape[0] for name in block.feed_forward_inputs
    }
    assert shapes == {20}


@pytest.mark.parametrize("architecture", GROUPED)
@pytest.mark.parametrize("importance", MEASURES)
def test_fewer_heads(make_context, make_draft, tmp_path, architecture, importance):
    """Llama loses a whole query group, Gemma, which has one, two heads of it."""
    draft = make_draft(make_context(architecture))
    before, size = copy.deepcopy(draft.model), 8
    whole = architecture == "llama"
    scores = head_scores(draft, importance, text_for(importance))
    with torch.no_grad():
        for index, layer in enumerate(draft.architecture.layers(before)):
            if whole:
                lost = int(scores[index].view(2, 2).sum(1).argmin())
                dropped = torch.arange(lost * 2 * size, (lost + 1) * 2 * size)
            else:
                lost = scores[index].argsort()[:2]
                dropped = torch.cat([torch.arange(head * size, (head + 1) * size) for head in lost])
            zero_inputs(layer.self_attn.o_proj, dropped)
        prune_heads(draft, 1 if whole else None, None if whole else 2, importance, text_for(importance))
        opened = reopened(draft.model, tmp_path)
        torch.testing.assert_close(opened(IDS).logits, before(IDS).logits, rtol=1e-4, atol=1e-4)
    assert opened.config.num_attention_heads == 2
    assert opened.config.num_key_value_heads == 1


@pytest.mark.parametrize("architecture", GROUPED)
@pytest.mark.parametrize("importance", MEASURES)
def test_a_thinner_stream(make_context, make_draft, tmp_path, architecture, importance):
    """Channels that nothing writes have no importance, and are not missed."""
    draft = make_draft(make_context(architecture))
    dropped = torch.tensor([1, 5, 6, 30])
    with torch.no_grad():
        matrix(draft.architecture.embedding(draft.model))[:, dropped] = 0
        if architecture == "llama":
            matrix(draft.model.lm_head)[:, dropped] = 0
        for layer in draft.architecture.layers(draft.model):
            for name in ("self_attn.o_proj", "mlp.down_proj"):
                matrix(layer.get_submodule(name))[dropped] = 0
            for name in (
                "self_attn.q_proj",
                "self_attn.k_proj",
                "self_attn.v_proj",
                "mlp.gate_proj",
                "mlp.up_proj",
            ):
                matrix(layer.get_submodule(name))[:, dropped] *= 1e-3
        expected = draft.model(IDS).logits
        scores = hidden_scores(draft, importance, text_for(importance))
        assert set(scores.argsort()[:4].tolist()) == set(dropped.tolist())
        prune_hidden(draft, 28, importance, text_for(importance))
        opened = reopened(draft.model, tmp_path)
        torch.testing.assert_close(opened(IDS).logits, expected, rtol=1e-3, atol=1e-3)
    assert opened.config.hidden_size == 28


@pytest.mark.parametrize("architecture", GROUPED)
@torch.inference_mode()
def test_keeping_everything_changes_nothing(make_context, make_draft, architecture):
    draft = make_draft(make_context(architecture))
    expected = draft.model(IDS).logits
    config = draft.model.config
    prune_feed_forward(draft, config.intermediate_size, "magnitude", None)
    prune_heads(draft, config.num_key_value_heads, None, "magnitude", None)
    prune_hidden(draft, config.hidden_size, "magnitude", None)
    torch.testing.assert_close(draft.model(IDS).logits, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_taylor_scores_equal_their_formula(make_context, make_draft, architecture):
    draft = make_draft(make_context(architecture))
    block = draft.architecture.block
    seen = []
    output = parts(draft, 1, f"{block.feed_forward}.{block.feed_forward_output}")

    def keep(_, arguments):
        arguments[0].retain_grad()
        seen.append(arguments[0])

    handle = output.register_forward_pre_hook(keep)
    embedded = draft.model.get_input_embeddings()(TEXT).detach().requires_grad_()
    logits = draft.model(inputs_embeds=embedded).logits
    handle.remove()
    each = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), TEXT[:, 1:], reduction="none"
    ).mean(1)
    each.sum().backward()
    expected = (seen[0] * seen[0].grad).abs().flatten(0, 1).sum(0) / TEXT.numel()
    found = feed_forward_scores(draft, "taylor", TEXT)[1]
    torch.testing.assert_close(found.float(), expected.detach(), rtol=1e-3, atol=1e-6)
    assert not any(p.requires_grad for p in draft.model.parameters())


def test_what_cannot_be_is_said(make_context, make_draft):
    draft = make_draft(make_context("llama"))
    with pytest.raises(BuildError, match=r"48 feed-forward channels per layer, so 49 .* in keep_channels"):
        prune_feed_forward(draft, 49, "magnitude", None)
    with pytest.raises(BuildError, match="2 query groups per layer"):
        prune_heads(draft, 3, None, "magnitude", None)
    with pytest.raises(BuildError, match="32 hidden channels"):
        prune_hidden(draft, 33, "magnitude", None)
    with pytest.raises(BuildError, match=r"no such model: The hidden size \(30\) is not a multiple"):
        prune_hidden(draft, 30, "magnitude", None)
    gpt2 = make_draft(make_context("gpt2"))
    with pytest.raises(
        BuildError, match=r"gpt2 makes queries, keys and values by one matrix.* use prune_ffn"
    ):
        prune_heads(gpt2, 1, None, "magnitude", None)
    with pytest.raises(BuildError, match="gpt2 makes queries, keys and values by one matrix"):
        prune_hidden(gpt2, 8, "magnitude", None)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gemma2", "glm4", "qwen3", "exaone4"])
@pytest.mark.parametrize("epsilon", [1e-6, 0.02])
def test_a_thinner_stream_is_compared_with_channels_of_zeros(
    make_context, make_draft, monkeypatch, architecture, epsilon
):
    """Whatever its norms add to the mean square: that weighs more in a narrower one, and is no fault of the cut."""
    draft = make_draft(make_context(architecture))
    for name in ("rms_norm_eps", "layer_norm_eps"):
        if hasattr(draft.model.config, name):
            setattr(draft.model.config, name, epsilon)
    draft.model = type(draft.model)(draft.model.config).eval().requires_grad_(False)
    broken = copy.deepcopy(draft.model)
    prune_hidden(draft, 24, "magnitude", None)
    assert draft.model.config.hidden_size == 24
    draft.model = broken
    monkeypatch.setattr(width, "_rescale", lambda *_: None)
    with pytest.raises(BuildError, match="removing hidden channels changes what the others of this"):
        prune_hidden(draft, 24, "magnitude", None)
