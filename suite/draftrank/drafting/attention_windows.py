"""How far back the layers of a model look."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FULL = "full_attention"
SLIDING = "sliding_attention"


def attention_windows(config: PretrainedConfig) -> dict[str, int | None]:
    """For each kind of attention, as the configuration names it, how many last positions a token sees, itself counted;
    None: all. Of a model whose layers are all alike, that of full attention alone."""
    if SLIDING not in (getattr(config, "layer_types", None) or ()):
        return {FULL: None}
    return {FULL: None, SLIDING: int(config.sliding_window)}
