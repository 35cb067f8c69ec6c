"""What the layers of a model remember of a text, and how far back they look."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, NoReturn

from draftrank.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

FULL = "full_attention"
SLIDING = "sliding_attention"
CHUNKED = "chunked_attention"
SHARED = "dummy"
"""transformers' name for a layer that reads the keys and values of an earlier one, or none at all."""
ATTENTION = frozenset({FULL, SLIDING, CHUNKED, SHARED})
"""Layers that remember the keys and values of each token, and nothing else."""
_WINDOWS = ("max_position_embeddings", "max_seq_len", "seq_length")
"""Fields of configurations that say how many tokens a model reads; others are mapped to the first by transformers."""


def context_window(config: PretrainedConfig) -> int | None:
    """Tokens that a model reads at most, by its configuration; None where that says nothing, as for biases by distance
    (ALiBi) and recurrent layers."""
    text = config.get_text_config()
    found = (getattr(text, name, None) for name in _WINDOWS)
    return next((int(one) for one in found if one), None)


def layer_kinds(config: PretrainedConfig) -> list[str]:
    """The kind of each layer, by transformers' names: as the configuration lists them, or, where it lists none, sliding
    attention in all layers if the architecture declares a window and full attention if not.

    This is the rule of transformers' `create_masks_for_generate`, except that a window in the configuration of an
    architecture that has none (a Llama with `sliding_window`) is ignored, as its model ignores it.
    """
    listed = getattr(config, "layer_types", None)
    if listed:
        return [str(kind) for kind in listed]
    if _declared(config, "sliding_window") is not None:
        kind = SLIDING
    elif _declared(config, "attention_chunk_size") is not None:
        kind = CHUNKED
    else:
        kind = FULL
    return [kind] * int(config.num_hidden_layers)


def attention_windows(config: PretrainedConfig) -> dict[str, int | None]:
    """How many last positions a token sees, itself counted, by kind of layer; None: all.

    A model whose configuration lists sliding layers takes one attention mask for each of two kinds; any other model
    takes one mask, and one kind is returned.

    Raises:
        UnsupportedModelError: the layers are not limited by a window alone, or limit themselves whatever the mask.
    """
    kinds = set(layer_kinds(config))
    if "local" in getattr(config, "attention_layers", ()):  # GPT-Neo
        raise UnsupportedModelError(
            f"{config.model_type} limits its local attention inside its layers, by the order in which tokens are read, so "
            "trees of tokens cannot be read: use drafts that propose chains (leave branch_above_probability out)"
        )
    if kinds - {FULL, SLIDING}:
        raise UnsupportedModelError(
            f"trees of tokens cannot be read by the layers of {config.model_type} "
            f"({', '.join(sorted(kinds - {FULL, SLIDING}))}): use drafts that propose chains (leave "
            "branch_above_probability out)"
        )
    if SLIDING not in kinds:
        return {FULL: None}
    window = int(config.sliding_window)
    return {FULL: None, SLIDING: window} if getattr(config, "layer_types", None) else {SLIDING: window}


def cache_argument(model: PreTrainedModel) -> str | None:
    """The argument of a model's forward that takes a cache of transformers; None where it takes none."""
    known = signature(model.forward).parameters
    return next((name for name in ("past_key_values", "cache_params") if name in known), None)


def require_decoder(model: PreTrainedModel) -> None:
    """Refuses models that do not continue a text token by token with a cache of transformers.

    Raises:
        UnsupportedModelError: the model is of another kind, or keeps its state elsewhere.
    """
    config = model.config.get_text_config()
    if getattr(model.config, "is_encoder_decoder", False):
        _refuse(
            model, "it is the decoder of an encoder-decoder model, which continues another text than its own"
        )
    if not isinstance(getattr(config, "num_hidden_layers", None), int):
        _refuse(model, "its configuration does not say how many layers it has (num_hidden_layers)")
    argument, stateless = cache_argument(model), set(layer_kinds(config)) <= ATTENTION
    kept_by_modules = any(hasattr(module, "recurrent_states") for module in model.modules())  # RecurrentGemma
    if argument is None or (argument == "cache_params" and stateless) or kept_by_modules:
        _refuse(
            model,
            "it keeps a state outside of a cache of transformers, from which no token can be taken back",
        )


def _refuse(model: PreTrainedModel, reason: str) -> NoReturn:
    raise UnsupportedModelError(
        f"the architecture {model.config.model_type!r} is not supported: {reason}; use a decoder-only language model"
    )


def _declared(config: PretrainedConfig, field: str) -> int | None:
    """A field's value, where the architecture has such a field."""
    value = getattr(config, field, None) if hasattr(type(config), field) else None
    return None if value is None else int(value)
