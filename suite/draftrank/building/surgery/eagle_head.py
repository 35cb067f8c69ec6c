"""A new EAGLE-3 head for a target, which begins with the weights of one of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from draftrank.errors import BuildError
from draftrank.models.architecture import Architecture
from draftrank.models.attention_windows import context_window
from draftrank.models.eagle import Eagle3Layer, eagle3_layer
from draftrank.models.forms import Eagle3Form
from draftrank.models.matrices import matrix

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from draftrank.models.layer_parts import Block

_EPSILON = 1e-6
"""Of the norms, for a target whose norms have none by this name."""


def new_eagle3_head(
    target: PreTrainedModel, layers: Sequence[int], begin_with: int
) -> tuple[PreTrainedModel, Eagle3Form]:
    """Makes an untrained head.

    Its sizes, rotary embedding, token embedding and head over the vocabulary are the target's. Its layer's matrices are
    those of one of the target's layers where that has matrices of the same sizes, so that it begins as that layer behind
    the last state which it reads; the columns that read the embedding begin at zero.

    Args:
        target: a copy of the target, fp32.
        layers: layers of the target whose outputs it reads, from 0.
        begin_with: the layer that gives its weights.
    """
    shape, config = Architecture.of(target), target.config.get_text_config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = LlamaForCausalLM(llama_config(config)).to(target.dtype).eval().requires_grad_(False)
        form = Eagle3Form(layers=tuple(layers))
        form.prepare(made)
    made.generation_config = target.generation_config
    embedding, head = shape.embedding(target), shape.head(target)
    made.get_input_embeddings().weight = nn.Parameter(matrix(embedding).detach(), requires_grad=False)
    made.get_output_embeddings().weight = nn.Parameter(matrix(head).detach(), requires_grad=False)
    made.tie_weights()
    layer = eagle3_layer(made)
    assert layer is not None
    source = shape.layers(target)[begin_with]
    _copy_matrices(layer, source, shape.blocks[begin_with])
    if shape.norm_kind == "rms":
        _copy_norms(layer, source, shape.norm_offset)
        final = made.get_submodule("model.norm")
        final.weight = nn.Parameter(matrix(shape.norm(target)) + shape.norm_offset, requires_grad=False)
    return made.to(target.device), form


def head_skeleton(target: PreTrainedModel) -> PreTrainedModel:
    """An EAGLE-3 head of a target on torch's meta device, to ask which backends know it."""
    with torch.device("meta"):
        made = LlamaForCausalLM(llama_config(target.config.get_text_config())).to(target.dtype).eval()
        Eagle3Form(layers=(0, 1, 2)).prepare(made)
    return made


def llama_config(config: PretrainedConfig) -> LlamaConfig:
    """The configuration of a Llama model of one layer with the sizes of a target."""
    heads = int(config.num_attention_heads)
    hidden = int(config.hidden_size)
    rope: dict[str, Any] = dict(getattr(config, "rope_parameters", None) or {})
    rope = rope.get("full_attention", rope)
    inner = getattr(config, "intermediate_size", None)
    window = context_window(config)
    ends = {name: getattr(config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return LlamaConfig(
        vocab_size=int(config.vocab_size),
        hidden_size=hidden,
        intermediate_size=inner if isinstance(inner, int) else 4 * hidden,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(config, "head_dim", None) or hidden // heads),
        hidden_act="silu",
        rms_norm_eps=float(getattr(config, "rms_norm_eps", _EPSILON)),
        tie_word_embeddings=bool(getattr(config, "tie_word_embeddings", False)),
        **({"rope_parameters": rope} if rope else {}),
        **({"max_position_embeddings": window} if window else {}),
        **ends,
    )


@torch.no_grad()
def _copy_matrices(layer: Eagle3Layer, source: nn.Module, block: Block) -> None:
    """Copies the matrices whose sizes are the same; those of attention read the state."""
    attention: Any = layer.self_attn
    network: Any = layer.mlp
    of_state: list[Tensor] = []
    for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
        of_embedding, state = linear.weight.chunk(2, 1)
        of_embedding.zero_()
        of_state.append(state)
    if block.mixing in ("separate", "fused"):
        _take(of_state, source, block.attention, (block.queries, block.keys, block.values))
        _take([attention.o_proj.weight], source, block.attention, (block.attention_output,))
    if block.gates != "none" and not block.experts:
        inputs = [network.gate_proj.weight, network.up_proj.weight]
        _take(inputs, source, block.feed_forward, block.feed_forward_inputs)
        _take([network.down_proj.weight], source, block.feed_forward, (block.feed_forward_output,))


def _take(ours: Sequence[Tensor], source: nn.Module, parent: str, names: Sequence[str]) -> None:
    """Copies matrices by rows, where they have as many as ours together; one may hold what several of ours do."""
    named = dict.fromkeys(names)
    theirs = torch.cat([matrix(source.get_submodule(f"{parent}.{name}")) for name in named])
    if theirs.shape == (sum(map(len, ours)), ours[0].shape[1]):
        parts = torch.tensor_split(theirs, list(accumulate(map(len, ours[:-1]))))
        for one, part in zip(ours, parts, strict=True):
            one.copy_(part)


@torch.no_grad()
def _copy_norms(layer: Eagle3Layer, source: nn.Module, offset: float) -> None:
    """Copies the norms of what attention and the feed-forward network read; where a layer norms what they give as well, the
    latter's has another name."""
    second = "pre_feedforward_layernorm"
    names = ("input_layernorm", second if hasattr(source, second) else "post_attention_layernorm")
    for name, ours in zip(names, (layer.hidden_norm, layer.post_attention_layernorm), strict=True):
        theirs = getattr(source, name, None)
        if isinstance(theirs, nn.Module):
            ours.weight.copy_(matrix(theirs) + offset)


def published_layers(depth: int) -> tuple[int, ...]:
    """The layers whose outputs EAGLE-3 heads read by convention, from 0: those before layers 2, depth // 2 and depth - 3.

    Raises:
        BuildError: the target has too few layers for three different ones.
    """
    found = (1, depth // 2 - 1, depth - 4)
    if list(found) != sorted(set(found)):
        raise BuildError(
            f"a target of {depth} layers has no three that an EAGLE-3 head reads by convention (before layers 2, {depth // 2} "
            f"and {depth - 3}): name them in aux_hidden_states"
        )
    return found
