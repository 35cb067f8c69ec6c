"""EAGLE-3 heads as models of transformers: new ones, which begin with the weights of a layer of their target, and published
ones."""

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
from draftrank.models.eagle import Eagle3Fusion, Eagle3Layer, eagle3_layer
from draftrank.models.eagle_head import PublishedHead, check_against
from draftrank.models.forms import FEATURES, Eagle3Form, TrimmedHead, TrimmedHeadForm
from draftrank.models.matrices import matrix

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from draftrank.building.working_draft import WorkingDraft
    from draftrank.models.layer_parts import Block

_HEAD_SIZE = 64
"""Of a head of attention, for a target without attention."""
_BATCH_SEQUENCES = 8
_FIRST_POSITIONS = 4
"""Positions at the start of a text whose states are many times larger than all others."""
_EPSILON = 1e-6
"""Of the norms, for a target whose norms have none by this name."""


@torch.inference_mode()
def require_states(target: PreTrainedModel) -> None:
    """Refuses targets whose hidden states no EAGLE-3 head can read.

    Raises:
        BuildError: the layers are not found or give something else than one state of each token, or no norm follows them.
    """
    shape = Architecture.of(target)
    ids = torch.zeros(1, 2, dtype=torch.int64, device=target.device)
    shape.states_of_layers(target, ids, range(len(shape.blocks)))
    shape.norm(target)


def new_eagle3_head(target: PreTrainedModel, layers: Sequence[int]) -> tuple[PreTrainedModel, Eagle3Form]:
    """Makes an untrained head.

    Its sizes, rotary embedding, token embedding and head over the vocabulary are the target's. Its layer's matrices are
    those of the target's last layer where that has matrices of the same sizes, so that it begins as that layer behind
    the last state which it reads; the columns that read the embedding begin at zero.

    Args:
        target: a copy of the target, fp32.
        layers: layers of the target whose outputs it reads, from 0.
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
    source = shape.layers(target)[-1]
    _copy_matrices(layer, source, shape.blocks[-1])
    if shape.norm_kind == "rms":
        _copy_norms(layer, made.get_submodule("model.norm"), source, shape.norm(target), shape.norm_offset)
    return made.to(target.device), form


def model_of_published(
    head: PublishedHead, target: PreTrainedModel
) -> tuple[PreTrainedModel, list[Eagle3Form | TrimmedHeadForm]]:
    """A published head as a model, and its forms. Of the target, a copy, it uses embedding and head where it has none of
    its own.

    Raises:
        BuildError: its architecture is not EAGLE-3, or it reads the target's embeddings as a hidden state.
        IncompatibleDraftError: it was made for another target.
    """
    check_against(head, target.config)
    if head.architecture != "eagle3":
        raise BuildError(
            "it is a head of the first EAGLE architecture, which is not run here: it can be measured in a serving engine"
        )
    shape, config = Architecture.of(target), target.config.get_text_config()
    layers = tuple(index - 1 for index in head.layers_of(int(config.num_hidden_layers)))
    if layers[0] < 0:
        raise BuildError("it reads hidden_states[0], the token embeddings, which is no output of a layer")
    form = Eagle3Form(
        layers=layers,
        target_width=int(config.hidden_size),
        norm_before_residual=head.norm_before_residual,
        bias="fc.bias" in head.tensors,
    )
    forms: list[Eagle3Form | TrimmedHeadForm] = [form]
    fields = head.config | _special_tokens(config) | {"tie_word_embeddings": False}
    made = LlamaForCausalLM(LlamaConfig(**fields))
    form.prepare(made)
    tensors = {_renamed(name): value.to(target.dtype) for name, value in head.tensors.items()}
    tensors.setdefault("model.embed_tokens.weight", matrix(shape.embedding(target)))
    if head.token_ids is None:
        tensors.setdefault("lm_head.weight", matrix(shape.head(target)))
    else:
        trimmed = TrimmedHeadForm(module="lm_head", kept=head.said_tokens)
        trimmed.prepare(made)
        forms.append(trimmed)
        tensors["lm_head.projection.weight"] = tensors.pop("lm_head.weight")
        tensors["lm_head.token_ids"] = head.token_ids
    made = made.to(target.dtype)
    biases = {
        name: torch.zeros_like(value)
        for name, value in made.state_dict().items()
        if name.endswith("_proj.bias") and name not in tensors
    }
    made.load_state_dict(tensors | biases)
    made.generation_config = target.generation_config
    return made.to(target.device).eval().requires_grad_(False), forms


def published_of(model: PreTrainedModel, form: Eagle3Form) -> PublishedHead:
    """A head of ours, not quantized, as it is published: the inverse of `model_of_published`, with the rows of the target
    that its head has."""
    config = model.config
    trimmed = model.get_output_embeddings()
    state = dict(model.state_dict())
    token_ids = trimmed.token_ids if isinstance(trimmed, TrimmedHead) else None
    if token_ids is not None:
        state["lm_head.weight"] = state.pop("lm_head.projection.weight")
        del state["lm_head.token_ids"]
    del state["model.embed_tokens.weight"]
    fields = (
        "num_hidden_layers", "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
        "hidden_act", "rms_norm_eps", "rope_parameters", "max_position_embeddings", "attention_bias",
    )  # fmt: skip
    return PublishedHead(
        architecture="eagle3",
        config={name: getattr(config, name) for name in fields},
        aux_layers=tuple(layer + 1 for layer in form.layers),
        norm_before_residual=form.norm_before_residual,
        token_ids=token_ids,
        tensors={_canonical(name): value for name, value in state.items()},
    )


def _renamed(name: str) -> str:
    """Of a weight by its canonical name, the name in a model of transformers."""
    first, _, rest = name.partition(".")
    return {
        "fc": f"{FEATURES}.fc.{rest}",
        "layer": f"model.layers.0.{rest}",
        "lm_head": name,
    }.get(first, f"model.{name}")


def _canonical(name: str) -> str:
    """The inverse."""
    shorter = name.removeprefix(f"{FEATURES}.").removeprefix("model.")
    return shorter.replace("layers.0.", "layer.", 1)


def head_skeleton(target: PreTrainedModel) -> PreTrainedModel:
    """An EAGLE-3 head of a target on torch's meta device, to ask which backends know it."""
    with torch.device("meta"):
        made = LlamaForCausalLM(llama_config(target.config.get_text_config())).to(target.dtype).eval()
        Eagle3Form(layers=(0, 1, 2)).prepare(made)
    return made


def llama_config(config: PretrainedConfig) -> LlamaConfig:
    """The configuration of a Llama model of one layer with the sizes of a target."""
    hidden = int(config.hidden_size)
    heads = int(getattr(config, "num_attention_heads", None) or max(1, hidden // _HEAD_SIZE))
    rope: dict[str, Any] = dict(getattr(config, "rope_parameters", None) or {})
    rope = rope.get("full_attention", rope)
    inner = getattr(config, "intermediate_size", None)
    window = context_window(config)
    return LlamaConfig(
        vocab_size=int(config.vocab_size),
        hidden_size=hidden,
        intermediate_size=inner if isinstance(inner, int) else 4 * hidden,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(config, "head_dim", None) or hidden // heads),  # `heads` may be made up
        hidden_act="silu",
        rms_norm_eps=float(getattr(config, "rms_norm_eps", None) or _EPSILON),
        tie_word_embeddings=bool(getattr(config, "tie_word_embeddings", False)),
        **({"rope_parameters": rope} if rope else {}),
        **({"max_position_embeddings": window} if window else {}),
        **_special_tokens(config),
    )


def _special_tokens(config: PretrainedConfig) -> dict[str, Any]:
    return {name: getattr(config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


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
def _copy_norms(
    layer: Eagle3Layer, final: nn.Module, source: nn.Module, source_final: nn.Module, offset: float
) -> None:
    """Copies the norms of what attention and the feed-forward network read, and the final one, where the target's have
    weights. Where a layer norms what they give as well, the feed-forward network's has another name."""
    second = "pre_feedforward_layernorm"
    named = "input_layernorm", second if hasattr(source, second) else "post_attention_layernorm"
    theirs = [*(getattr(source, name, None) for name in named), source_final]
    for norm, ours in zip(theirs, (layer.hidden_norm, layer.post_attention_layernorm, final), strict=True):
        weight = getattr(norm, "weight", None)
        if isinstance(weight, Tensor):
            ours.weight.copy_(weight + offset)


@torch.no_grad()
def norm_before_residual(draft: WorkingDraft, target: PreTrainedModel, tokens: Tensor) -> float:
    """Lets the layer of an EAGLE-3 head add to the normed state; see the step of this name.

    The norm gets one weight for all channels, the size that states have on the text, and the matrices that read it what it
    had before: for states of that size the head computes the same.

    Args:
        draft: changed in place.
        target: the model whose states the head reads, of the head's dtype and on its device.
        tokens: text, token ids [sequences, length].

    Returns:
        Root mean square of the states that the head makes of the target's.

    Raises:
        BuildError: the draft is no EAGLE-3 head, or its layer adds to the normed state already.
    """
    layer = eagle3_layer(draft.model)
    if layer is None or layer.norm_before_residual:
        raise BuildError(
            "norm_before_residual changes an EAGLE-3 head whose layer adds to the unnormed state: put it behind eagle_head, once"
        )
    shape, fusion = Architecture.of(target), draft.model.get_submodule(FEATURES)
    assert isinstance(fusion, Eagle3Fusion)
    squares = []
    for batch in torch.split(tokens, _BATCH_SEQUENCES):
        told = shape.states_of_layers(target, batch.to(target.device, torch.int64), fusion.layers)
        squares.append(fusion.reduce(told)[:, _FIRST_POSITIONS:].float().pow(2).mean((1, 2)))
    size = float(torch.cat(squares).mean().sqrt())
    attention: Any = layer.self_attn
    for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
        linear.weight[:, layer.hidden_size :].mul_(layer.hidden_norm.weight / size)
    layer.hidden_norm.weight.fill_(size)
    layer.norm_before_residual = True
    draft.forms = [
        form.model_copy(update={"norm_before_residual": True}) if isinstance(form, Eagle3Form) else form
        for form in draft.forms
    ]
    return size


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
