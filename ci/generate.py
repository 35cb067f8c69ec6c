"""Writes what is generated from the code: the JSON Schemas of declarations and bundles, the tables of fields
in `docs/declarations.md`, and the gates, rules and constants in `docs/methodology.md`. Run it after
one of them has changed; tests say when it is due.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from draftrank.catalog.schemas import FOLDER, MODELS, generate, generated_text
from draftrank.catalog.step_order import RULES as ORDER
from draftrank.kinds import STEPS as STEP_KINDS
from draftrank.kinds import load_kind
from draftrank.measure.gates.serving import SERVING_GATES
from draftrank.measure.gates.verdict import GATES
from draftrank.measure.machine.disturbance import RULES
from draftrank.store.bundle_format import SCHEMA_FILE, schema_text

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "declarations.md"
METHODOLOGY = DOCS / "methodology.md"
SECTION = re.compile(
    r"(<!-- (?P<kind>gates|rules|constants|docstring):? ?(?P<names>[\w., ]*) -->\n).*?(<!-- /(?P=kind) -->)",
    re.DOTALL,
)
STEPS = re.compile(r"(<!-- (?P<kind>steps|order) -->\n).*?(<!-- /(?P=kind) -->)", re.DOTALL)
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
    page = STEPS.sub(lambda match: match[1] + of_steps(match["kind"]) + match[3], page)
    return TABLE.sub(lambda match: match[1] + table(known[match["name"]]) + match[3], page)


def of_steps(kind: str) -> str:
    """The table of all steps, or the rules of their order."""
    if kind == "order":
        found = ((rule.reason, rule.fix) for rule in ORDER)
        return "".join(
            f"- {reason.format(step='a step', other='another')}: {fix.format(step='it', other='the other')}.\n"
            for reason, fix in found
        )
    steps = {name: load_kind(path) for name, path in STEP_KINDS.items()}
    return rows(
        ("step", "what it gives", "cost and effect", "architectures", "source"),
        (
            (f"[`{name}`](#{name})", first_line(step), step.cost, step.architectures, step.paper)
            for name, step in steps.items()
        ),
    )


def first_line(documented: type[Any]) -> str:
    """The first sentence of a class's docstring."""
    return (inspect.getdoc(documented) or "").partition("\n\n")[0].replace("\n", " ")


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
    if kind == "object":
        return "names with values"
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


def with_sections(page: str) -> str:
    """The methodology with every section between markers as the code is now.

    Raises:
        LookupError: a constant has no docstring below it, or a module none at its head.
    """
    return SECTION.sub(
        lambda match: match[1] + section(match["kind"], match["names"].split()) + match[4], page
    )


def section(kind: str, names: list[str]) -> str:
    """One section: of all gates (`gates: serving`: those of serving sessions) or rules, or of the constants or the module that
    are named."""
    if kind == "gates":
        gates = SERVING_GATES if names else GATES
        return rows(
            ("gate", "judges", "what it holds, and why", "what a reader is told"),
            ((f"`{gate.id}`", f"the {gate.scope}", gate.meaning, gate.reason) for gate in gates),
        )
    if kind == "rules":
        return rows(
            ("rule", "a prompt turn is then", "what must hold", "what a reader is told"),
            ((f"`{rule.id}`", rule.kind, rule.meaning, f"{rule.reason}; {rule.fix}") for rule in RULES),
        )
    if kind == "constants":
        return rows(("constant", "value", "meaning"), map(constant, names))
    return "".join(f"{module_docstring(name)}\n" for name in names)


def rows(names: tuple[str, ...], cells: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [names, ("---",) * len(names), *cells]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def constant(name: str) -> tuple[str, str, str]:
    """Name, value and docstring of a module's constant, given as `package.module.NAME`."""
    module_name, _, attribute = name.rpartition(".")
    module = importlib.import_module(f"draftrank.{module_name}")
    body = ast.parse(inspect.getsource(module)).body
    for node, below in itertools.pairwise(body):
        named = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == attribute
        if named and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            text = " ".join(str(below.value.value).split())
            return f"`{module_name}.{attribute}`", f"{getattr(module, attribute):g}", text
    raise LookupError(f"{name} has no docstring below it")


def module_docstring(name: str) -> str:
    """What a module says of itself, without its first line, which is a heading."""
    text = inspect.getdoc(importlib.import_module(f"draftrank.{name}"))
    if not text:
        raise LookupError(f"{name} has no docstring")
    return text.partition("\n\n")[2] or text


def main() -> int:
    """Writes what is not current; names it."""
    generated = {
        **{FOLDER / f"{name}.json": generated_text(name) for name in MODELS},
        PAGE: with_tables(PAGE.read_text("utf-8")),
        METHODOLOGY: with_sections(METHODOLOGY.read_text("utf-8")),
        SCHEMA_FILE: schema_text(),
    }
    for path, text in generated.items():
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
            print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
