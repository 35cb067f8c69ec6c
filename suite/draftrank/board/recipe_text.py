"""A recorded recipe in words and as YAML, also when this version no longer knows all of it."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter, ValidationError

from draftrank.board.proposers import technique_in_words
from draftrank.catalog.draft import DraftBase
from draftrank.catalog.formatting import yaml_text
from draftrank.catalog.recipe import Draft, Recipe
from draftrank.measure.records import DraftBuild

_LINE_WIDTH = 88
_DRAFT: TypeAdapter[Any] = TypeAdapter(Draft)


def draft_of(recipe: dict[str, Any]) -> DraftBase | None:
    """What a recorded recipe declares; None where this version does not know all of it."""
    try:
        found: DraftBase = _DRAFT.validate_json(json.dumps(recipe.get("draft")))
    except ValidationError:
        return None
    return found


def recipe_sentence(build: DraftBuild) -> str:
    """How the draft was made, in one sentence; its techniques where the recipe is of another version."""
    draft = draft_of(build.recipe)
    words = (
        draft.sentence() if draft is not None else ", then ".join(map(technique_in_words, build.techniques))
    )
    return f"{words[:1].upper()}{words[1:]}." if words else ""


def steps_of(build: DraftBuild) -> tuple[tuple[str, str], ...]:
    """Technique and sentence of each step, in order; empty for a draft that is not built in steps."""
    draft = draft_of(build.recipe)
    return tuple((step.technique, step.sentence()) for step in draft.build_steps) if draft is not None else ()


def recipe_yaml(recipe: dict[str, Any]) -> str:
    """The recipe as YAML, its fields in the order in which recipes are written."""
    known = [name for name in Recipe.model_fields if name in recipe]
    ordered = {name: recipe[name] for name in [*known, *sorted(recipe.keys() - set(known))]}
    return yaml_text(_kind_first(ordered), _LINE_WIDTH)


def _kind_first(value: Any) -> Any:
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: name != "kind")
        return {name: _kind_first(value[name]) for name in names}
    if isinstance(value, list | tuple):
        return [_kind_first(item) for item in value]
    return value
