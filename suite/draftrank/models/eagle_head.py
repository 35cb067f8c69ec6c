"""An EAGLE head as it was published, whatever its files looked like.

Auxiliary hidden states are numbered as in transformers: i is `hidden_states[i]`, the input of layer i. Architectures:
arXiv 2401.15077 (EAGLE), 2503.01840 (EAGLE-3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from draftrank.errors import IncompatibleDraftError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

STATES = 3
"""Auxiliary hidden states where a configuration names none."""


@dataclass(frozen=True, slots=True)
class PublishedHead:
    """An EAGLE head, whatever its files looked like."""

    architecture: Literal["eagle3", "eagle"]
    """`eagle` is the first EAGLE, whose weights EAGLE-2 and HASS share."""
    config: dict[str, Any]
    """Fields of transformers' `LlamaConfig` for its one layer; `vocab_size` is the target's."""
    aux_layers: tuple[int, ...] | None
    """Which `hidden_states` of the target an EAGLE-3 head reads; None: those of `layers_of`. An EAGLE head reads the
    final one, after the norm."""
    norm_before_residual: bool
    """Whether the layer's residual begins at the normed state instead of the state itself."""
    token_ids: Tensor | None
    """int64 [draft vocabulary], ascending: the target's ids that the head can say; None: all."""
    tensors: dict[str, Tensor]
    """By canonical name: `fc.weight`, `layer.*` named as in transformers' Llama layer and, in EAGLE-3,
    `layer.hidden_norm.weight` and `norm.weight`; shapes in `weight_shapes`. What is absent of `embed_tokens.weight` and
    `lm_head.weight` is the target's."""

    @property
    def target_hidden_size(self) -> int:
        """Width of one hidden state of the target."""
        states = len(self.aux_layers or range(STATES)) if self.architecture == "eagle3" else 2
        return int(self.tensors["fc.weight"].shape[1]) // states

    @property
    def said_tokens(self) -> int:
        """Rows of its output."""
        return int(self.config["vocab_size"] if self.token_ids is None else self.token_ids.numel())

    def layers_of(self, depth: int) -> tuple[int, ...]:
        """Which `hidden_states` an EAGLE-3 head reads of a target of so many layers."""
        return self.aux_layers or (2, depth // 2, depth - 3)


def weight_shapes(head: PublishedHead, target_hidden_size: int) -> dict[str, tuple[int, ...]]:
    """The shape of every weight that a head has or may have, by canonical name. Of the head only configuration and
    vocabulary are read; `target_hidden_size` is the width of one hidden state of the target."""
    config = head.config
    hidden, inner, eagle3 = config["hidden_size"], config["intermediate_size"], head.architecture == "eagle3"
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    read = 2 * hidden if eagle3 else hidden
    states = len(head.aux_layers or range(STATES)) * target_hidden_size if eagle3 else 2 * hidden
    norms = ["layer.post_attention_layernorm"]
    if eagle3:
        norms += ["layer.input_layernorm", "layer.hidden_norm", "norm"]
    return {
        "fc.weight": (hidden, states),
        "fc.bias": (hidden,),
        **{f"{norm}.weight": (hidden,) for norm in norms},
        "layer.self_attn.q_proj.weight": (queries, read),
        "layer.self_attn.k_proj.weight": (keys, read),
        "layer.self_attn.v_proj.weight": (keys, read),
        "layer.self_attn.o_proj.weight": (hidden, queries),
        "layer.self_attn.q_proj.bias": (queries,),
        "layer.self_attn.k_proj.bias": (keys,),
        "layer.self_attn.v_proj.bias": (keys,),
        "layer.self_attn.o_proj.bias": (hidden,),
        "layer.mlp.gate_proj.weight": (inner, hidden),
        "layer.mlp.up_proj.weight": (inner, hidden),
        "layer.mlp.down_proj.weight": (hidden, inner),
        "embed_tokens.weight": (config["vocab_size"], hidden),
        "lm_head.weight": (head.said_tokens, hidden),
    }


def check_against(head: PublishedHead, target: PretrainedConfig) -> None:
    """Compares a head with the configuration of the target that it shall draft for.

    Raises:
        IncompatibleDraftError: it was made for another target; the message says everything by which that is seen.
    """
    text = target.get_text_config()
    hidden, vocabulary, depth = int(text.hidden_size), int(text.vocab_size), int(text.num_hidden_layers)
    found = []
    if head.target_hidden_size != hidden:
        found.append(
            f"it reads hidden states of width {head.target_hidden_size}, and the target's are {hidden} wide"
        )
    if head.config["vocab_size"] != vocabulary:
        found.append(f"its vocab_size is {head.config['vocab_size']}, and the target has {vocabulary} tokens")
    if head.config["hidden_size"] != hidden:
        found += [
            f"it is {head.config['hidden_size']} wide and has no {name}, so the target's does not fit"
            for name in ("embed_tokens.weight", "lm_head.weight")
            if name not in head.tensors
        ]
    outside = [layer for layer in head.layers_of(depth) if not 0 <= layer < depth]
    if head.architecture == "eagle3" and outside:
        found.append(
            f"it reads the inputs of layers {list(head.layers_of(depth))}, and the target has {depth} layers"
        )
    if found:
        raise IncompatibleDraftError(
            f"the EAGLE head was made for another target: {'; '.join(found)}. Name a head that was trained for this target"
        )
