"""The parts of one decoder layer, found in its module tree.

Names are those of the families of transformers; where a name says nothing, sizes do. What computes is not told by names
alone: steps that rely on it compare the outputs (`models.architecture_checks`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from draftrank.models.matrices import is_transposed, matrix

Mixing = Literal["separate", "fused", "latent", "other", "none"]
"""How a layer's attention makes queries, keys and values: by a matrix each, by one of all, through a latent vector (MLA);
`other`: not by attention over keys and values alone (state-space layers, convolutions, attention behind experts)."""

_QUERIES = frozenset({"q_proj", "query", "wq", "q", "query_proj"})
_KEYS = frozenset({"k_proj", "key", "wk", "k", "key_proj"})
_VALUES = frozenset({"v_proj", "value", "wv", "v", "value_proj"})
_FUSED = re.compile(r"qkv|query_key_value|^c_attn$", re.IGNORECASE)
_OUTPUTS = frozenset({"o_proj", "out_proj", "dense", "c_proj", "wo", "Wo", "o", "proj", "output_proj"})
_LATENT = re.compile(r"^kv_[ab]_proj")
_FEED_FORWARD = re.compile(r"mlp|ffn|feed_?forward|moe|^ff$", re.IGNORECASE)
_FEED_FORWARD_CLASS = re.compile(r"(mlp|ffn|feedforward|moe|moeblock)$", re.IGNORECASE)
_FEED_FORWARD_OUTPUTS = frozenset(
    {"down_proj", "c_proj", "fc2", "fc_out", "dense_4h_to_h", "w2", "wo", "Wo", "output_linear", "linear_2"}
)


@dataclass(frozen=True, slots=True)
class Block:
    """Names of a decoder layer's parts, as attributes of its modules; empty where the layer has none."""

    attention: str = ""
    """Below the layer: what mixes tokens."""
    mixing: Mixing = "none"
    queries: str = ""
    """In the attention, as the next three."""
    keys: str = ""
    values: str = ""
    attention_output: str = ""
    attention_matrices: tuple[str, ...] = ()
    """In the attention: every matrix."""
    feed_forward: str = ""
    """Below the layer; empty also where its matrices are the layer's own (OPT)."""
    feed_forward_inputs: tuple[str, ...] = ()
    """In the feed-forward network: what makes its channels."""
    feed_forward_output: str = ""
    """In the feed-forward network: what reads them."""
    gates: Literal["none", "separate", "fused"] = "none"
    """Whether channels are multiplied by a gate, of a matrix of its own or the first half of one."""
    experts: bool = False
    """Whether the feed-forward network is a mixture of experts."""
    other_matrices: tuple[str, ...] = ()
    """Below the layer: matrices of the feed-forward side that are none of its channels', such as shared experts."""
    norms: tuple[str, ...] = ()
    """Below the layer: norms over the hidden channels."""

    @property
    def fused(self) -> bool:
        """Whether one matrix makes queries, keys and values."""
        return self.mixing == "fused"

    def attention_parts(self) -> tuple[str, ...]:
        """Every matrix of the attention, below the layer."""
        return tuple(_joined(self.attention, name) for name in self.attention_matrices)

    def channel_parts(self) -> tuple[str, ...]:
        """What makes and reads the channels of a dense feed-forward network, below the layer: the output comes last."""
        names = [*self.feed_forward_inputs, *filter(None, [self.feed_forward_output])]
        return tuple(_joined(self.feed_forward, name) for name in names)

    def feed_forward_parts(self) -> tuple[str, ...]:
        """Every matrix of the feed-forward network, below the layer; of experts, those that all tokens pass."""
        return (*self.channel_parts(), *self.other_matrices)


def parts_of(layer: nn.Module, hidden: int) -> Block:
    """Finds the parts of a decoder layer, by the size of the residual stream."""
    matrices = [
        name for name, module in layer.named_modules() if is_matrix(module) and not _inside(layer, name)
    ]
    mixer = _mixer(layer, matrices)
    network = _feed_forward(layer, mixer)
    attention = _attention(layer, mixer, matrices, hidden)
    attended = {_joined(attention.attention, name) for name in attention.attention_matrices}
    within = None if mixer is None else _joined(mixer, "")
    norms = tuple(
        name
        for name, module in layer.named_modules()
        if is_norm(module)
        and (within is None or not name.startswith(within))
        and not (network and name.startswith(_joined(network, "")))
        and _normed_size(module) in (hidden, None)
    )
    rest = [
        name
        for name in matrices
        if name not in attended and (within is None or not within or not name.startswith(within))
    ]
    return replace(_network_parts(layer, attention, network, rest), norms=norms)


def is_matrix(module: nn.Module) -> bool:
    """Whether a module multiplies by one matrix, in whatever form a library keeps it."""
    name, weight = type(module).__name__.lower(), getattr(module, "weight", None)
    if (
        isinstance(weight, Tensor) and weight.ndim != 2
    ):  # a norm or a convolution of a family that is named after its layers
        return False
    return (
        (
            isinstance(module, nn.Linear)
            or is_transposed(module)
            or ("linear" in name and "attention" not in name and not name.endswith(("attn", "layer")))
        )
        and weight is not None
    ) or name == "lowranklinear"


def is_norm(module: nn.Module) -> bool:
    """Whether a module norms its input."""
    return "norm" in type(module).__name__.lower() and not any(True for _ in module.children())


def _mixer(layer: nn.Module, matrices: list[str]) -> str | None:
    """The module that mixes tokens: the one whose own children are queries or their like; None: the layer has none."""
    parents: dict[str, set[str]] = {}
    for name in matrices:
        parent, _, own = name.rpartition(".")
        parents.setdefault(parent, set()).add(own)
    for parent, names in parents.items():
        if names & _QUERIES and names & (_KEYS | _VALUES):
            return parent
        if any(_FUSED.search(name) and not name.startswith("in_proj") for name in names):
            return parent
        if any(_LATENT.match(name) for name in names):
            return parent
    for name, _child in layer.named_children():
        if not _FEED_FORWARD.search(name) and any(one.startswith(f"{name}.") for one in matrices):
            return name
    return None


def _attention(layer: nn.Module, mixer: str | None, matrices: list[str], hidden: int) -> Block:
    if mixer is None:
        return Block()
    prefix = _joined(mixer, "")
    inside = [name.removeprefix(prefix) for name in matrices if name.startswith(prefix)]
    own = [name for name in inside if "." not in name]

    def named(names: frozenset[str]) -> str:
        return next((name for name in own if name in names), "")

    queries, keys, values = named(_QUERIES), named(_KEYS), named(_VALUES)
    output = named(_OUTPUTS)
    fused = next((name for name in own if _FUSED.search(name)), "")
    mixing: Mixing = "other"
    if queries and keys and values and output:
        mixing = "separate"
    elif any(_LATENT.match(name) for name in own):
        mixing = "latent"
    elif (
        fused
        and output
        and not any(True for name, _ in layer.get_submodule(mixer).named_children() if "conv" in name)
    ):
        mixing, queries, keys, values = "fused", fused, fused, fused
    first = [name for name in dict.fromkeys((queries, keys, values)) if name]
    if mixing == "other":  # some matrices are read by kernels and not called
        inside = [name for name in inside if hidden in _sizes(layer.get_submodule(prefix + name))]
    others = [name for name in _called(inside) if name not in (*first, output)]
    return Block(
        attention=mixer,
        mixing=mixing,
        queries=queries,
        keys=keys,
        values=values,
        attention_output=output,
        attention_matrices=(*first, *others, *([output] if output in inside else [])),
    )


def _feed_forward(layer: nn.Module, mixer: str | None) -> str:
    for name, child in layer.named_children():
        named = _FEED_FORWARD.search(name) or _FEED_FORWARD_CLASS.search(type(child).__name__)
        if named and name != mixer and not is_norm(child) and _has_weights(child):
            return name
    return ""


def _has_weights(module: nn.Module) -> bool:
    """Also such that are no parameters, as torch keeps those of int8 layers."""
    return any(True for _ in module.parameters()) or any(is_matrix(part) for part in module.modules())


def _network_parts(layer: nn.Module, attention: Block, network: str, rest: list[str]) -> Block:
    """Adds the feed-forward network to the attention."""
    prefix = _joined(network, "")
    own = [name.removeprefix(prefix) for name in rest if name.startswith(prefix)]
    own = [name for name in own if "." not in name]
    module = layer.get_submodule(network)
    experts = bool(network) and any(
        "expert" in name.lower() or "router" in name.lower() for name, _ in module.named_modules()
    )
    output = next((name for name in own if name in _FEED_FORWARD_OUTPUTS), "")
    inputs = tuple(name for name in own if name != output)
    if experts or not output or not inputs:
        return replace(attention, feed_forward=network, experts=experts, other_matrices=tuple(_called(rest)))
    channels = _sizes(layer.get_submodule(prefix + output))[1]
    made = _sizes(layer.get_submodule(prefix + inputs[0]))[0]
    mine = {prefix + name for name in own}
    return replace(
        attention,
        feed_forward=network,
        feed_forward_inputs=inputs,
        feed_forward_output=output,
        gates="fused" if made == 2 * channels else "separate" if len(inputs) == 2 else "none",
        other_matrices=tuple(_called([name for name in rest if name not in mine])),
    )


def _called(names: list[str]) -> Iterator[str]:
    """Without routers, whose few numbers decide which expert reads a token."""
    return (name for name in names if not re.search(r"router|(^|\.)gate$|gate\.|_gate$|wg$", name))


def _inside(layer: nn.Module, name: str) -> bool:
    """Whether a matrix is a part of another one, as the two of a low-rank product are."""
    parent, _, _ = name.rpartition(".")
    while parent:
        if is_matrix(layer.get_submodule(parent)):
            return True
        parent, _, _ = parent.rpartition(".")
    return False


def _sizes(module: nn.Module) -> tuple[int, int]:
    """Outputs and inputs of a matrix; zeros where a library does not tell."""
    if is_transposed(module):
        outputs, inputs = matrix(module).shape
        return outputs, inputs
    found = (getattr(module, "out_features", 0), getattr(module, "in_features", 0))
    return int(found[0]), int(found[1])


def _normed_size(norm: nn.Module) -> int | None:
    """Channels that a norm has weights of; None: it has no weights."""
    weight = getattr(norm, "weight", None)
    return int(weight.numel()) if isinstance(weight, Tensor) else None


def _joined(parent: str, name: str) -> str:
    return f"{parent}.{name}" if parent else name
