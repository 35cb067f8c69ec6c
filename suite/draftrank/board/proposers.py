"""What proposes a draft's tokens, in words, read from its recorded recipe.

Records of every version are read, also of kinds that this version no longer declares, so the recipe is looked at as
plain values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from draftrank.measure.records import step_kinds

_ALONE = {
    "ngram": "n-gram",
    "suffix": "suffix decoding",
    "early_exit": "early exit",
    "eagle": "EAGLE-3 head",
    "engine_method": "engine method",
}
_MODELS = ("draft_model", "model")  # (the second: before 0.3)
_CASCADES = ("cascade", "mixed")
_OWN_HEADS = ("read_hidden_states", "read_features")  # (old word)
"""Steps before 0.3 and in its first sessions: heads of an architecture of draftrank's own."""
_BY_STEP = (
    ("distill", "distilled draft model"),
    ("drop_layers", "layer-dropped draft model"),
    ("merge_layers", "layer-merged draft model"),
    ("quantize", "quantized draft model"),
)
"""What a model is called for the first of these steps that its recipe has: what makes most of the draft comes first."""
_TECHNIQUES = {"suffix": "suffix decoding", "target features": "EAGLE head"}  # (old word)
"""Techniques as records before 0.3 spell them."""


def proposer_of(recipe: Mapping[str, Any], techniques: Sequence[str], *, served: bool = False) -> str:
    """What proposes, e.g. `n-gram`, `EAGLE-3 head`, `suffix decoding + EAGLE-3 head`; of a kind that is not known here, its
    techniques. Where it is `served`, the model of a cascade proposes alone."""
    draft = recipe.get("draft")
    kind = draft.get("kind") if isinstance(draft, Mapping) else None
    if isinstance(draft, Mapping) and isinstance(kind, str):
        if kind in _ALONE:
            return _ALONE[kind]
        if kind in _MODELS or (served and kind in _CASCADES):
            return _model(recipe)
        if kind in _CASCADES:
            first = _ALONE["ngram" if draft.get("min_probability") is None else "suffix"]
            return f"{first} + {_model(recipe)}"
    return " + ".join(map(technique_in_words, techniques)) or "unknown"


def technique_in_words(technique: str) -> str:
    """A recorded technique as it is called today."""
    return _TECHNIQUES.get(technique, technique)


def _model(recipe: Mapping[str, Any]) -> str:
    kinds = step_kinds(recipe)
    if "eagle_head" in kinds:
        return _ALONE["eagle"]
    if any(head in kinds for head in _OWN_HEADS):
        return "EAGLE head"
    if "random" in kinds:
        return "random draft model"
    return next((name for kind, name in _BY_STEP if kind in kinds), "draft model")
