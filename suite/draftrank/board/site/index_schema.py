"""The JSON Schema of `index.json`, derived from the types behind it so that their docstrings are its descriptions."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from draftrank.board.as_json import NOT_SHOWN, SCHEMA_VERSION, SERVED_NOT_SHOWN, SESSION_NOT_SHOWN
from draftrank.board.parity import NOT_SHOWN as NOT_SHOWN_OF_PARITY
from draftrank.board.references import ReferenceRow
from draftrank.board.rows import BoardKey, BoardRow, BoardSession
from draftrank.board.serving import ServedFigures, ServedRow, ServingKey
from draftrank.catalog.field_docs import described
from draftrank.measure.parity import Agreement, Parity, Speeds
from draftrank.measure.records import Machine

_TEXT = {"type": "string"}
_FIGURE = {"type": ["number", "null"]}
_ENDS = {"anyOf": [{"type": "null"}, {"type": "array", "items": {"type": "number"}, "maxItems": 2}]}
_NOISE = {
    "description": "A/A: the baseline against itself; null where the session has no such comparison.",
    "anyOf": [
        {"type": "null"},
        {
            "type": "object",
            "properties": {
                "speedup": {"type": "number"},
                "ci": _ENDS,
            },
            "required": ["speedup", "ci"],
            "additionalProperties": False,
        },
    ],
}
_WARNINGS = {"description": "What a reader should know.", "type": "array", "items": _TEXT}


@cache
def index_schema() -> dict[str, Any]:
    """A JSON Schema (draft 2020-12) of the document that `board_document` gives for several boards."""
    definitions: dict[str, Any] = {}
    key = _of(BoardKey, definitions)
    session = _shown(BoardSession, SESSION_NOT_SHOWN, definitions) | {"noise": _NOISE}
    row = _shown(BoardRow, NOT_SHOWN, definitions) | {
        "board": {"description": "Id of the board.", **_TEXT},
        "complete": {"description": "Whether it has an output of every prompt.", "type": "boolean"},
        "gates": {"description": "Ids of the gates it did not pass.", "type": "array", "items": _TEXT},
    }
    head = key["properties"] | {
        "id": {"description": "Id of the board: 12 hex digits.", **_TEXT},
        "machine": _of(Machine, definitions),
        "baseline_tokens_per_second": _FIGURE,
        "noise": _NOISE,
        "warnings": _WARNINGS,
        "tasks": {"description": "Ids of the tasks.", "type": "array", "items": _TEXT},
        "sessions": {"type": "array", "items": {"$ref": "#/$defs/Session"}},
        "references": {"type": "array", "items": _of(ReferenceRow, definitions)},
    }
    definitions |= {
        "Board": _object("One board.", head),
        "Row": _object("One draft on one board.", row),
        "Session": _object("One session.", session),
    }
    parity = _shown(Parity, NOT_SHOWN_OF_PARITY, definitions) | _PARITY
    parity |= {
        "tokens_per_second": _of(Speeds, definitions),
        "outputs": _of(Agreement, definitions) | {"description": "There, with the draft against without."},
        "target_outputs": _of(Agreement, definitions)
        | {"description": "Without the draft, there against here."},
    }
    definitions["Parity"] = _object("A draft in another engine beside this one.", parity)
    definitions["Serving"] = _serving(definitions)
    document = {
        "schema_version": {"const": SCHEMA_VERSION},
        "boards": {"type": "array", "items": {"$ref": "#/$defs/Board"}},
        "rows": {"type": "array", "items": {"$ref": "#/$defs/Row"}},
        "parities": {"type": "array", "items": {"$ref": "#/$defs/Parity"}},
        "servings": {"type": "array", "items": {"$ref": "#/$defs/Serving"}},
    }
    whole = _object("Every board of a draftrank site, with its rows.", document)
    # (A single board's head stands beside its rows once more, for scripts that read one board.)
    whole["additionalProperties"] = True
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "draftrank index",
        **whole,
        "$defs": _used(definitions, whole),
    }


_LENGTHS = {
    "type": "object",
    "properties": {
        "here": {"description": "Acceptance length in this engine.", **_FIGURE},
        "there": {"description": "Acceptance length in the other.", **_FIGURE},
        "ratio": {"description": "`there` ÷ `here`; over tasks, the geometric mean of theirs.", **_FIGURE},
        "ci": _ENDS,
    },
    "required": ["ci", "here", "ratio", "there"],
    "additionalProperties": False,
}
_PARITY = {
    "machine_class": _TEXT,
    "recipe_sha256": _TEXT,
    "weights_sha256": {"type": ["string", "null"]},
    "verdict": {"enum": ["holds", "fails", "undecided"]},
    "reasons": {"description": "Why it does not hold.", "type": "array", "items": _TEXT},
    "acceptance": _LENGTHS,
    "per_task": {"type": "object", "additionalProperties": _LENGTHS},
    "disagreements": {
        "description": "Prompts whose counts contradict the output.",
        "type": "array",
        "items": _TEXT,
    },
}


def _serving(definitions: dict[str, Any]) -> dict[str, Any]:
    """A serving board with its rows."""
    definitions["Figures"] = _of(ServedFigures, definitions)
    shown = _shown(ServedRow, SERVED_NOT_SHOWN, definitions) | {
        "best": {
            "description": "By concurrency, the figures of the k that is shown: the ranked one with the highest speedup.",
            "type": "object",
            "additionalProperties": {"$ref": "#/$defs/Figures"},
        },
        "by_k": {
            "description": "Figures of every k at every concurrency.",
            "type": "array",
            "items": {"$ref": "#/$defs/Figures"},
        },
        "switch_off_at": {
            "description": "The smallest measured concurrency at which the speedup's interval does not lie above 1; null where "
            "there is none.",
            "type": ["integer", "null"],
        },
        "switch_off_words": {"description": "Its uncertainty, e.g. `between 4 and 16`.", **_TEXT},
    }
    definitions["ServedRow"] = _object("One draft on a serving board.", shown)
    head = _of(ServingKey, definitions)["properties"] | {
        "id": {"description": "Id of the board: 12 hex digits.", **_TEXT},
        "machine": _of(Machine, definitions),
        "measured_at": {"description": "UTC time, ISO 8601.", **_TEXT},
        "sessions": {"description": "Ids of the sessions.", "type": "array", "items": _TEXT},
        "warnings": _WARNINGS,
        "concurrencies": {"type": "array", "items": {"type": "integer"}},
        "plain": {
            "description": "The plain server by concurrency.",
            "type": "array",
            "items": {"$ref": "#/$defs/Figures"},
        },
        "noise": {
            "description": "A/A by concurrency: the plain server against its twin.",
            "type": "array",
            "items": _object(
                "A/A at one concurrency.",
                {"concurrency": {"type": "integer"}, "speedup": _FIGURE, "ci": _ENDS},
            ),
        },
        "rows": {"type": "array", "items": {"$ref": "#/$defs/ServedRow"}},
    }
    return _object("One server on one machine, with a column for each concurrency.", head)


def _object(description: str, properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        "required": sorted(properties),
        "additionalProperties": False,
    }


def _of(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    """A type's schema; what it refers to goes into `definitions`."""
    schema = described(TypeAdapter(kind).json_schema(mode="serialization"))
    definitions |= schema.pop("$defs", {})
    return schema | {"additionalProperties": False}


def _shown(kind: type, without: Collection[str], definitions: dict[str, Any]) -> dict[str, Any]:
    """A type's properties but for those that the document leaves out."""
    found = _of(kind, definitions)["properties"]
    return {name: value for name, value in found.items() if name not in without}


def _used(definitions: dict[str, Any], start: object) -> dict[str, Any]:
    """The definitions that something refers to."""
    found: set[str] = set()
    open_ends = [start]
    while open_ends:
        value = open_ends.pop()
        if isinstance(value, dict):
            name = str(value.get("$ref", "")).removeprefix("#/$defs/")
            if name and name not in found:
                found.add(name)
                open_ends.append(definitions[name])
            open_ends.extend(value.values())
        elif isinstance(value, list):
            open_ends.extend(value)
    return {name: definitions[name] for name in sorted(found)}
