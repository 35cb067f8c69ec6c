"""JSON Schemas for editors, generated from the models and committed beside this file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from draftrank.catalog.base import Declared
from draftrank.catalog.field_docs import described
from draftrank.catalog.recipe import Recipe
from draftrank.catalog.self_generated import Corpus
from draftrank.catalog.server import Server
from draftrank.catalog.target import Target
from draftrank.catalog.task import Suite, Task

MODELS: dict[str, type[Declared]] = {
    "corpus": Corpus,
    "recipe": Recipe,
    "server": Server,
    "suite": Suite,
    "target": Target,
    "task": Task,
}
"""Schema name → the model it describes."""

FOLDER = Path(__file__).parent


def schema_name(model: type[Declared]) -> str:
    """The schema's name for a model."""
    return next(name for name, known in MODELS.items() if known is model)


def generate(name: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one kind of declaration."""
    schema = described(MODELS[name].model_json_schema())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def generated_text(name: str) -> str:
    """The committed file's exact content."""
    return json.dumps(generate(name), indent=2, ensure_ascii=False) + "\n"
