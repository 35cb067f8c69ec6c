"""What the layers of a model remember of a text, and how far back they look."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any, NoReturn

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
RECURRENT = frozenset({"conv", "linear_attention"})
"""Layers that keep one state whatever they have read, and do not count tokens."""
_SIZES = ("hidden_size", "vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim")
"""Fields of configurations that are positive where a family has them."""
_WINDOWS = ("max_position_embeddings", "max_seq_len", "seq_length")
"""Fields of configurations that say how many tokens a model reads; others are mapped to the first by transformers."""


def context_window(config: PretrainedConfig) -> int | None:
    """Tokens that a model reads at most, by its configuration; None where that says nothing, as for biases by distance
    (ALiBi) and recurrent layers."""
    text = config.get_text_config()
    found = (getattr(text, name, None) for name in _WINDOWS)
    return next((int(one) for one in found if one), None)


def head_size(config: PretrainedConfig) -> int:
    """How many numbers a query of one head has."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def declared(config: PretrainedConfig, name: str, otherwise: Any = None) -> Any:
    """A setting of a configuration whose family has it; its model ignores it in any other."""
    return getattr(config, name) if hasattr(type(config), name) else otherwise


def layer_kinds(config: PretrainedConfig) -> list[str]:
    """The kind of each layer, by transformers' names: as the configuration lists them, or, where it lists none, sliding
    attention in all layers if the architecture declares a window and full attention if not.

    This is the rule of transformers' `create_masks_for_generate`, except that a window in the configuration of an
    architecture that has none (a Llama with `sliding_window`) is ignored, as its model ignores it.
    """
    listed = getattr(config, "layer_types", None)
    if listed:
        return [str(kind) for kind in listed]
    if declared(config, "sliding_window") is not None:
        kind = SLIDING
    elif declared(config, "attention_chunk_size") is not None:
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


def require_decoder(config: PretrainedConfig) -> None:
    """Refuses configurations of anything but a language model that continues its own text.

    Raises:
        UnsupportedModelError: an encoder, an encoder-decoder, a model without a language model's head, or one without layers.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if getattr(config, "is_encoder_decoder", False):
        _refuse(config, "it is an encoder-decoder model, whose decoder continues another text than its own")
    if getattr(config, "is_decoder", None) is False and hasattr(
        config, "add_cross_attention"
    ):  # BERT and its like
        _refuse(config, "it is an encoder, whose tokens see the ones behind them (is_decoder: false)")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        _refuse(config, "transformers has no causal language model of it (AutoModelForCausalLM)")
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if not isinstance(layers, int) or layers < 1:
        _refuse(config, f"its configuration says that it has {layers or 'no'} layers (num_hidden_layers)")
    for name in _SIZES:
        size = vars(config.get_text_config()).get(name)
        if isinstance(size, int) and size < 1:
            raise UnsupportedModelError(
                f"config.json of this {config.model_type} model: {name}: is {size}, where a positive number belongs; correct it, "
                "or fetch the folder again"
            )


def require_cache(model: PreTrainedModel) -> None:
    """Refuses models that remember a text elsewhere than in a cache of transformers, or not at all.

    Raises:
        UnsupportedModelError: no token could be taken back from what it remembers.
    """
    argument = cache_argument(model)
    stateless = set(layer_kinds(model.config.get_text_config())) <= ATTENTION
    kept_by_modules = any(hasattr(module, "recurrent_states") for module in model.modules())  # RecurrentGemma
    own_cache = not model._supports_default_dynamic_cache()  # MiniMax
    if argument is None:
        _refuse(
            model.config,
            "its forward takes no cache of transformers, from which tokens could be taken back",
            "another model",
        )
    if (argument == "cache_params" and stateless) or kept_by_modules or own_cache:
        _refuse(
            model.config,
            "it keeps a state outside of a cache of transformers, from which no token can be taken back",
            "another model",
        )


def _refuse(
    config: PretrainedConfig, reason: str, instead: str = "a decoder-only language model"
) -> NoReturn:
    raise UnsupportedModelError(
        f"the architecture {config.model_type!r} is not supported: {reason}; use {instead}"
    )
