"""What the layers of a model remember of a text, and how far back they look."""

from __future__ import annotations

from typing import TYPE_CHECKING

from draftrank.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

FULL = "full_attention"
SLIDING = "sliding_attention"
CHUNKED = "chunked_attention"


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


def require_kv_cache(model: PreTrainedModel) -> None:
    """Refuses models that remember a text otherwise than by the keys and values of each token.

    Raises:
        UnsupportedModelError: some layers keep a state that tokens cannot be taken back from.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    others = sorted(str(kind) for kind in kinds - {FULL, SLIDING, CHUNKED})
    if model._is_stateful or others:
        raise UnsupportedModelError(
            f"the architecture {config.model_type!r} is not supported: its layers "
            f"{f'({chr(44).join(others)}) ' if others else ''}keep a state from which rejected tokens cannot be taken back; "
            "use a model whose layers all attend over a KV cache"
        )


def _declared(config: PretrainedConfig, field: str) -> int | None:
    """A field's value, where the architecture has such a field."""
    value = getattr(config, field, None) if hasattr(type(config), field) else None
    return None if value is None else int(value)
