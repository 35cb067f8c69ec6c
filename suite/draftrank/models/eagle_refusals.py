"""Heads of other kinds, told by their names, so that a refusal says what the files are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from draftrank.errors import InvalidInputError, Problem

ELSEWHERE = "it can be measured in a serving engine, such as vLLM or SGLang"
_METHODS = (
    ("a Medusa head", r"medusa", r"medusa|^\d+\.\d+\.linear\."),
    ("a Hydra head", r"hydra", r"hydra"),
    ("an MTP module", r"mtp|next_?n", r"(^|\.)(mtp|eh_proj|enorm|hnorm|shared_head)\."),
    ("a DFlash draft", r"dflash", r"dflash"),
    ("a DSpark draft", r"dspark", r"markov|confidence_head"),
    ("a P-EAGLE head", r"p_?eagle|pard_token", r"mask_hidden"),
    ("an MLP speculator", r"mlp_?speculator", r"^speculator\."),
    ("a ReDrafter head", r"redrafter|recurrent_?drafter", r"drafter\."),
)
"""What a kind is called; the words of a configuration and the names of weights that it is known by."""
_SWITCHES = ("fc_norm", "norm_output", "norm_before_fc", "layernorms")
"""Norms before the fusion of states, and heads that read their own state normed (EAGLE 3.1 and its like)."""
_LAYERS = (
    (r"\.(q_norm|k_norm)\.", "norms its queries and keys, as Qwen 3 does"),
    (r"expert|block_sparse_moe|mlp\.gate\.|router", "has a mixture of experts"),
    (r"\.(kv_a|kv_b|q_a|q_b)_", "has multi-head latent attention, as DeepSeek does"),
    (r"(pre|post)_feedforward", "has norms around its feed-forward part, as Gemma does"),
    (r"\.sinks$", "has attention sinks, as gpt-oss does"),
)
_LLAMA_TYPES = ("llama", "mistral", "qwen2")
"""Models whose layer is Llama's, with or without biases in the attention."""


def refuse_other_methods(config: Mapping[str, Any], file: str) -> None:
    """Refuses a configuration of a head that is no EAGLE or EAGLE-3 head of one Llama layer.

    Raises:
        InvalidInputError: it is one of another kind; the message names the kind.
    """
    nested = config.get("eagle_config") or {}
    named = {
        **{key: [key] for key, value in {**nested, **config}.items() if value},
        "speculators_model_type": [config.get("speculators_model_type")],
        "architectures": config.get("architectures") or [],
        "model_type": [config.get("model_type")],
    }
    for what, words, _ in _METHODS:
        for field, values in named.items():
            if any(re.search(words, str(value).lower()) for value in values):
                _refuse(f"is {what}", file, field)
    kind = config.get("speculators_model_type")
    if kind not in (None, "eagle3", "eagle"):
        _refuse(f"is a draft of the kind {kind!r} of the package speculators", file, "speculators_model_type")
    for switch in _SWITCHES:
        if config.get(switch) or nested.get(switch):
            _refuse("is a later variant of EAGLE, with further norms", file, switch)
    if nested.get("parallel_draft_step", 1) > 1:
        _refuse("drafts several tokens a forward", file, "eagle_config.parallel_draft_step")
    if nested.get("use_aux_hidden_state") is False:
        _refuse(
            "is an EAGLE-3 head without auxiliary hidden states", file, "eagle_config.use_aux_hidden_state"
        )


def refuse_other_layers(layer: Mapping[str, Any], file: str, field: str) -> None:
    """Refuses fields of a layer that is not one plain Llama layer with full attention; the message names the file, and the
    field in it that holds them, empty at the top.

    Raises:
        InvalidInputError: it is not.
    """
    prefix = f"{field}." if field else ""
    count = layer.get("num_hidden_layers", 1)
    if count != 1:
        _refuse(
            f"has {count} layers, and only heads of one layer are run", file, f"{prefix}num_hidden_layers"
        )
    kind = layer.get("model_type")
    if kind is not None and kind not in _LLAMA_TYPES:
        _refuse(f"has a layer of {kind}, not of Llama", file, f"{prefix}model_type")
    if layer.get("quantization_config"):
        raise InvalidInputError.single(
            "is quantized",
            file=file,
            field=f"{prefix}quantization_config",
            fix="name the repository of the head as it was trained",
        )
    windows = "sliding_attention" in (layer.get("layer_types") or ())
    if windows or (layer.get("use_sliding_window") and layer.get("sliding_window")):
        _refuse("has a sliding window", file, f"{prefix}{'layer_types' if windows else 'use_sliding_window'}")
    rope = layer.get("rope_parameters") or layer.get("rope_scaling") or {}
    if rope.get("partial_rotary_factor", layer.get("partial_rotary_factor") or 1.0) != 1.0:
        _refuse("rotates a part of each attention head", file, f"{prefix}partial_rotary_factor")


def refuse_other_weights(names: Iterable[str], files: Mapping[str, str]) -> None:
    """Refuses stored names of weights of another kind of head, or of another layer than Llama's; the message names their
    file.

    Raises:
        InvalidInputError: one of them is known to be.
    """
    names = list(names)
    for what, _, pattern in _METHODS:
        for name in names:
            if re.search(pattern, name):
                _refuse(f"is a weight of {what}", files[name], name)
    for pattern, what in _LAYERS:
        for name in names:
            if re.search(pattern, name):
                _refuse(f"belongs to a layer that {what}, not to Llama's", files[name], name)
    for name in names:
        further = re.match(r"(?:model\.)?(?:layers\.(\d+)|additional_layers\.\d+)\.", name)
        if further and further[1] != "0":
            _refuse("belongs to a second layer, and only heads of one layer are run", files[name], name)


def _refuse(message: str, file: str, field: str) -> None:
    raise InvalidInputError([Problem(message, file, field=field, fix=ELSEWHERE)])
