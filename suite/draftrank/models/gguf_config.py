"""What a GGUF file states of a model's forward beside its weights, to and from a configuration of transformers.

transformers' reader takes sizes, the epsilon of the norms and the rotary base, and passes over the rest without a
word: RoPE scaling, softcaps, the pattern of sliding windows, the scale of attention. Here each statement is carried
in both directions with the meaning that llama.cpp gives it, or refused by name.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from draftrank.errors import BuildError, InvalidInputError
from draftrank.models.attention_windows import head_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from gguf import GGUFReader
    from transformers import PretrainedConfig, PreTrainedModel

ROPE_FREQS = "rope_freqs.weight"
"""Tensor of float32 [head_dim / 2]: what each rotary frequency is divided by (Llama 3's RoPE scaling)."""
MODEL_TYPES = {"llama": ("llama", "mistral"), "gemma3": ("gemma3_text",)}
"""Architectures that are written, and the models of transformers that each can hold."""
_ACTIVATIONS = {"llama": "silu", "gemma3": "gelu_pytorch_tanh"}
_SCALED_BY_WIDTH = {("gemma2", 46), ("gemma3", 62)}
"""Architecture and layers of the models (27B) whose attention llama.cpp scales by hidden size / heads."""
_GEMMA3_PERIOD = 6
_YARN_BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}
"""The only ones that llama.cpp knows for the models that are read here."""
_DEFAULT_BASE = 10_000.0
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Parameters of all published Llama 3 models; the factor is seen in the tensor."""

_CARRIED = {
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
}
_SEEN_IN_SHAPES = {
    "attention.key_length",
    "attention.value_length",
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
    "feed_forward_length",
    "use_parallel_residual",
    "vocab_size",
}
"""What the tensors' names and shapes say too."""
_NO_EFFECT = {"rope.scaling.finetuned", "tensor_data_layout"}
_NEUTRAL: dict[str, object] = {
    "attention.causal": True,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attention.scale": 0.0,
    "expert_count": 0,
    "expert_used_count": 0,
    "rope.scaling.alpha": 0.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
    **{f"rope.scaling.yarn_{name}": value for name, value in _YARN_BETAS.items()},
}
"""Statements that say nothing while they have these values."""


def statements_of(config: PretrainedConfig, architecture: str) -> dict[str, int | float | str]:
    """What a file of this architecture states of a model; keys are without the architecture's name.

    Raises:
        BuildError: llama.cpp runs no such model.
    """
    _require_expressible(config, architecture)
    size = head_size(config)
    full, sliding = _rope_parameters(config)
    found: dict[str, int | float | str] = {
        "context_length": int(config.max_position_embeddings),
        "block_count": int(config.num_hidden_layers),
        "embedding_length": int(config.hidden_size),
        "feed_forward_length": int(config.intermediate_size),
        "attention.head_count": int(config.num_attention_heads),
        "attention.head_count_kv": int(config.num_key_value_heads),
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": size,
        "rope.freq_base": float(full["rope_theta"]),
        "vocab_size": int(config.vocab_size),
        **_scaling_statements(config, full),
    }
    if sliding is not None:
        found["rope.freq_base_swa"] = float(sliding["rope_theta"])
        if "sliding_attention" in config.layer_types:
            found["attention.sliding_window"] = int(config.sliding_window)
        if config.final_logit_softcapping:
            found["final_logit_softcapping"] = float(config.final_logit_softcapping)
    return found


def rotary_divisors(config: PretrainedConfig) -> np.ndarray[Any, Any] | None:
    """What a file holds as `ROPE_FREQS`, float32 [head_dim / 2]; None: it holds none."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    full, _ = _rope_parameters(config)
    if full["rope_type"] != "llama3":
        return None
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size = head_size(config)
    plain = float(full["rope_theta"]) ** -(np.arange(0, size, 2) / size)
    divisors: np.ndarray[Any, Any] = plain / frequencies.double().numpy()
    return divisors.astype(np.float32)


def complete_config(config: PretrainedConfig, source: Path, reader: GGUFReader) -> PretrainedConfig:
    """The configuration that transformers read from a file, with everything that the file states.

    Raises:
        InvalidInputError: the file states what transformers has no place for.
    """
    from transformers.modeling_gguf_pytorch_utils import GGUF_TO_TRANSFORMERS_MAPPING

    config = copy.deepcopy(config)
    architecture = str(reader.fields["general.architecture"].contents())
    prefix = f"{architecture}."
    stated = {
        key.removeprefix(prefix): field.contents()
        for key, field in reader.fields.items()
        if key.startswith(prefix)
    }
    tables = GGUF_TO_TRANSFORMERS_MAPPING["config"]
    read = tables.get(architecture) or tables.get(config.model_type) or {}
    for key, value in stated.items():
        known = read.get(key) or key in _CARRIED | _SEEN_IN_SHAPES | _NO_EFFECT
        if not known and not (key in _NEUTRAL and value == _NEUTRAL[key]):
            _refuse(source, f"{prefix}{key} = {value}")
    divisors = next((tensor.data for tensor in reader.tensors if tensor.name == ROPE_FREQS), None)
    if divisors is not None and np.all(divisors == 1.0):
        divisors = None

    def refuse(key: str) -> NoReturn:
        _refuse(source, f"{prefix}{key} = {stated[key]}" if key in stated else key)

    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if stated.get(key) and not hasattr(config, key):
            refuse(key)
        if key in stated and hasattr(config, key):
            setattr(config, key, float(stated[key]) or None)
    _set_windows(config, stated, refuse)
    if hasattr(config, "query_pre_attn_scalar"):
        by_width = (architecture, config.num_hidden_layers) in _SCALED_BY_WIDTH
        config.query_pre_attn_scalar = (
            config.hidden_size // config.num_attention_heads if by_width else head_size(config)
        )
    if getattr(config, "rope_parameters", None):
        _set_rope(config, stated, divisors if architecture == "llama" else None, refuse)
    else:
        for key in stated:
            if key in _CARRIED and key.startswith("rope."):
                refuse(key)
    if divisors is not None and architecture != "llama":
        refuse(ROPE_FREQS)
    return config


def require_all_weights(model: PreTrainedModel, missing: set[str], source: Path, reader: GGUFReader) -> None:
    """Compares the numbers that a file holds with those of the model that transformers read from it; tied weights count
    once.

    Raises:
        InvalidInputError: a weight is missing, by `missing` or by their number, or the model left out a tensor.
    """
    if missing:
        _refuse(source, f"no {', '.join(sorted(missing)[:3])}", "lacks weights of the model")
    held = sum({one.data_ptr(): one.numel() for one in model.state_dict().values()}.values())
    stored = {one.name: int(one.n_elements) for one in reader.tensors if one.name != ROPE_FREQS}
    if sum(stored.values()) != held:
        unknown = [name for name in stored if name not in _tensor_names(model, reader)]
        _refuse(
            source, ", ".join(unknown[:3]) or f"{sum(stored.values())} numbers where the model has {held}"
        )


def _tensor_names(model: PreTrainedModel, reader: GGUFReader) -> set[str]:
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    name = reader.fields["general.architecture"].contents()
    kind = next(kind for kind, known in MODEL_ARCH_NAMES.items() if known == name)
    names = get_tensor_name_map(kind, model.config.num_hidden_layers)
    parts = [key.rpartition(".") for key in model.state_dict()]
    return {f"{names.get_name(stem)}.{suffix}" for stem, _, suffix in parts}


def _refuse(
    source: Path, what: str, why: str = "states what transformers' model has no place for"
) -> NoReturn:
    raise InvalidInputError.single(
        f"{why}: {what}", file=source.name, field="source", fix="use the model's safetensors folder"
    )


def _rope_parameters(config: PretrainedConfig) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Those of layers with full attention, and, where they have their own, of those with a sliding window."""
    parameters = config.rope_parameters
    if "full_attention" in parameters:
        return parameters["full_attention"], parameters["sliding_attention"]
    return parameters, None


def _require_expressible(config: PretrainedConfig, architecture: str) -> None:
    """llama.cpp reads the pattern of sliding windows off the layers' numbers, and the scale of attention off the
    heads' size."""
    if config.model_type not in MODEL_TYPES[architecture]:
        raise BuildError(f"a {config.model_type} model is no {architecture} model of llama.cpp")
    activation = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    if activation != _ACTIVATIONS[architecture]:
        raise BuildError(f"llama.cpp knows {_ACTIVATIONS[architecture]} in these models, not {activation}")
    if architecture != "gemma3":
        if getattr(config, "sliding_window", None):
            raise BuildError("llama.cpp knows no sliding windows in models of the llama architecture")
        return
    if config.attn_logit_softcapping or config.use_bidirectional_attention:
        raise BuildError("llama.cpp's Gemma 3 has causal attention whose logits are not capped")
    size, scale = head_size(config), int(config.query_pre_attn_scalar)
    if ("gemma3", config.num_hidden_layers) in _SCALED_BY_WIDTH:
        size = int(config.hidden_size // config.num_attention_heads)
    if size != scale:
        raise BuildError(
            f"llama.cpp scales the attention of a Gemma model by its head size {size}, this one by that of {scale}"
        )
    kinds = list(config.layer_types)
    if "sliding_attention" in kinds and kinds != _windows(len(kinds), _GEMMA3_PERIOD):
        raise BuildError(
            f"llama.cpp expects full attention in every {_GEMMA3_PERIOD}th layer of a Gemma model, and this draft has "
            "it elsewhere: keep layers in whole periods"
        )


def _windows(layers: int, period: int) -> list[str]:
    return [
        "sliding_attention" if period == 0 or (i + 1) % period else "full_attention" for i in range(layers)
    ]


def _scaling_statements(config: PretrainedConfig, full: dict[str, Any]) -> dict[str, float | str]:
    _, sliding = _rope_parameters(config)
    kind = full["rope_type"]
    if full.get("partial_rotary_factor", 1.0) != 1.0:
        raise BuildError("llama.cpp rotates whole heads in these models, this one a part of each")
    if sliding is not None and (kind not in ("default", "linear") or sliding["rope_type"] != "default"):
        raise BuildError(
            f"llama.cpp scales RoPE of a Gemma model linearly and in full attention only, not by {kind!r} in full and "
            f"{sliding['rope_type']!r} in sliding attention"
        )
    if kind in ("default", "llama3"):
        return {}
    if kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(full["factor"])}
    if kind == "yarn":
        return _yarn_statements(config, full)
    raise BuildError(f"RoPE scaling of the type {kind!r} is not written as GGUF")


def _yarn_statements(config: PretrainedConfig, full: dict[str, Any]) -> dict[str, float | str]:
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for name, only in _YARN_BETAS.items():
        if (full.get(name) or only) != only:
            raise BuildError(f"llama.cpp knows YaRN with {name} {only:g} in these models, not {full[name]:g}")
    if not full.get("truncate", True):
        raise BuildError("llama.cpp knows YaRN with a truncated range of corrections only")
    original = int(full["original_max_position_embeddings"])
    factor = float(full["factor"] or config.max_position_embeddings / original)
    _, attention = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": float(attention) / _yarn_attention(factor),
    }


def _yarn_attention(factor: float) -> float:
    """What llama.cpp multiplies rotated queries and keys by, besides what a file states."""
    return 1.0 + 0.1 * math.log(factor)


def _set_windows(config: PretrainedConfig, stated: dict[str, Any], refuse: Callable[[str], NoReturn]) -> None:
    window = int(stated.get("attention.sliding_window", 0)) or None
    if not hasattr(config, "sliding_window"):
        if window:
            refuse("attention.sliding_window")
        return
    kinds = getattr(config, "layer_types", None)
    if kinds is None or window is not None:
        config.sliding_window = window
    if kinds is None:
        return
    pattern = stated.get("attention.sliding_window_pattern")
    if window is None:
        # transformers makes a mask of this width all the same, so the width stays
        config.layer_types = ["full_attention" if kind == "sliding_attention" else kind for kind in kinds]
    elif isinstance(pattern, list):
        if len(pattern) != len(kinds):
            refuse("attention.sliding_window_pattern")
        config.layer_types = ["sliding_attention" if slides else "full_attention" for slides in pattern]
    elif pattern is not None:
        config.layer_types = _windows(len(kinds), int(pattern))


def _set_rope(
    config: PretrainedConfig,
    stated: dict[str, Any],
    divisors: np.ndarray[Any, Any] | None,
    refuse: Callable[[str], NoReturn],
) -> None:
    full, sliding = _rope_parameters(config)
    base = float(stated.get("rope.freq_base", _DEFAULT_BASE))
    kept = {key: full[key] for key in ("partial_rotary_factor",) if key in full}
    rotated = int(head_size(config) * kept.get("partial_rotary_factor", 1.0))
    if stated.get("rope.dimension_count", rotated) != rotated:
        refuse("rope.dimension_count")
    scaled = {"rope_theta": base, **kept, **_scaling(config, stated, sliding is not None, refuse)}
    if sliding is not None:
        local = float(stated.get("rope.freq_base_swa", _DEFAULT_BASE))
        config.rope_parameters = {
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
            "full_attention": scaled,
        }
        return
    if stated.get("rope.freq_base_swa", base) != base:
        refuse("rope.freq_base_swa")
    config.rope_parameters = scaled
    if divisors is not None:
        config.rope_parameters = {**scaled, "rope_type": "llama3", "factor": float(divisors.max()), **_LLAMA3}
        expected = rotary_divisors(config)
        assert expected is not None
        fits = divisors.shape == expected.shape and np.allclose(divisors, expected, rtol=1e-4)
        if scaled["rope_type"] != "default" or not fits:
            refuse(f"{ROPE_FREQS} that is not Llama 3's")


def _scaling(
    config: PretrainedConfig, stated: dict[str, Any], windowed: bool, refuse: Callable[[str], NoReturn]
) -> dict[str, Any]:
    kind = str(stated.get("rope.scaling.type", "linear"))
    factor = float(stated.get("rope.scaling.factor", stated.get("rope.scale_linear", 0.0))) or 1.0
    attention = float(stated.get("rope.scaling.attn_factor", 1.0))
    if kind == "yarn" and not windowed:
        return {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": int(
                stated.get("rope.scaling.original_context_length", config.max_position_embeddings)
            ),
            "attention_factor": attention * _yarn_attention(factor),
        }
    if kind not in ("none", "linear"):
        refuse("rope.scaling.type")
    if attention != 1.0:
        refuse("rope.scaling.attn_factor")
    if kind == "none" or factor == 1.0:
        return {"rope_type": "default"}
    return {"rope_type": "linear", "factor": factor}
