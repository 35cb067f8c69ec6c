"""Writes what is generated from the models: the JSON Schemas of declarations and bundles, and the tables
of fields in `docs/declarations.md`. Run it after a field or a kind has changed; tests say when it is due.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from draftrank.catalog.schemas import MODELS, generate, write_all
from draftrank.store.bundle_format import SCHEMA_FILE, schema_text

PAGE = Path(__file__).parents[1] / "docs" / "declarations.md"
TABLE = re.compile(r"(<!-- fields: (?P<name>\w+) -->\n).*?(<!-- /fields -->)", re.DOTALL)
HEAD = "| field | value | default | meaning |\n|---|---|---|---|\n"
PATTERNS = {
    "^[a-z0-9](?:[a-z0-9.-]{0,62}[a-z0-9])?$": "id",
    "^[0-9a-f]{64}$": "64 hex digits",
    "^[0-9a-f]{40}$": "40 hex digits",
    r"^[^\x00-\x1f\x7f]+$": "one line of text",
    r"^[\w .+()/-]+$": "relative path",
}


def definitions() -> dict[str, dict[str, Any]]:
    """The schema of every model that a declaration can hold, by the model's name."""
    found: dict[str, dict[str, Any]] = {}
    for name in MODELS:
        schema = generate(name)
        found |= schema.get("$defs", {})
        found[schema["title"]] = schema
    return found


def with_tables(page: str) -> str:
    """The page with every table of fields as the models are now."""
    known = definitions()
    return TABLE.sub(lambda match: match[1] + table(known[match["name"]]) + match[3], page)


def table(schema: dict[str, Any]) -> str:
    """The fields of one model as a Markdown table."""
    rows = [
        f"| `{name}` | {value(field)} | {default(name, field, schema)} | {meaning(field)} |\n"
        for name, field in schema["properties"].items()
    ]
    return HEAD + "".join(rows)


def value(field: dict[str, Any]) -> str:
    """What may be written, in a few words."""
    if "$ref" in field:
        return f"fields of {field['$ref'].rsplit('/', 1)[-1]}"
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{choice}`" for choice in field["enum"])
    if "discriminator" in field:
        return "one of the kinds " + ", ".join(f"`{kind}`" for kind in field["discriminator"]["mapping"])
    if "anyOf" in field:
        return " or ".join(value(option) for option in field["anyOf"] if option.get("type") != "null")
    kind = field["type"]
    if kind == "array":
        return f"list of {value(field['items'])}"
    if kind in ("integer", "number"):
        return ("whole number" if kind == "integer" else "number") + limits(field)
    if kind == "boolean":
        return "`true`, `false`"
    return PATTERNS.get(field.get("pattern", ""), "text")


def limits(field: dict[str, Any]) -> str:
    """The range of a number."""
    if "minimum" in field and "maximum" in field:
        return f", {field['minimum']:,} to {field['maximum']:,}"
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "over",
        "maximum": "at most",
        "exclusiveMaximum": "under",
    }
    return "".join(f", {word} {field[name]:,}" for name, word in words.items() if name in field)


def default(name: str, field: dict[str, Any], schema: dict[str, Any]) -> str:
    """What holds where the field is absent."""
    if name in schema.get("required", ()):
        return "required"
    if field.get("default") is None:
        return "–"
    present = field["default"]
    if isinstance(present, dict):
        present = {key: entry for key, entry in present.items() if entry is not None}
    return f"`{json.dumps(present)}`" if not isinstance(present, str) else f"`{present}`"


def meaning(field: dict[str, Any]) -> str:
    """The field's description on one line."""
    return " ".join(field.get("description", "Names the kind.").split()).replace("|", "\\|")


def main() -> int:
    """Writes what is not current; names it."""
    changed = write_all()
    page = PAGE.read_text("utf-8")
    current = with_tables(page)
    if current != page:
        PAGE.write_text(current, "utf-8")
        changed.append(PAGE)
    if SCHEMA_FILE.read_text("utf-8") != schema_text():
        SCHEMA_FILE.write_text(schema_text(), "utf-8")
        changed.append(SCHEMA_FILE)
    for path in changed:
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
