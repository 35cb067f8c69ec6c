"""From a YAML file to a validated declaration, with every problem found named at once."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from draftrank.catalog.base import Declared
from draftrank.catalog.yaml_file import FieldPath, YamlFile, read_yaml
from draftrank.errors import InvalidInputError, Problem

if TYPE_CHECKING:
    from draftrank.catalog.workspace import References

M = TypeVar("M", bound=Declared)

_FIXES = {
    "missing": "add the field",
    "int_type": "write a whole number",
    "int_from_float": "write a whole number",
    "float_type": "write a number",
    "string_type": "write text, in quotes if it looks like a number",
    "bool_type": "write true or false",
    "tuple_type": "write a list",
    "list_type": "write a list",
    "dict_type": "write fields below it",
    "model_type": "write fields below it",
    "model_attributes_type": "write fields below it",
    "string_pattern_mismatch": "use the form that the message shows",
    "too_short": "add at least one entry",
    "string_too_short": "write at least one character",
}


def load_declaration(
    path: Path, model: type[M], name: str | None = None, references: References | None = None
) -> M:
    """Reads and validates one declaration; its `id`, where it has one, must be the file's stem.

    Args:
        name: how errors name the file; default: its path.
        references: what the file may refer to; None: it must be complete in itself.

    Raises:
        InvalidInputError: with every problem of the file.
    """
    file = read_yaml(path, name)
    if not isinstance(file.data, dict):
        raise file.fault("must be a mapping of fields", "start from `draftrank new`", 1)
    problems: list[Problem] = []
    stem = path.parent.name if path.name == "target.yaml" else path.stem
    declared_id = file.data.get("id")
    if isinstance(declared_id, str) and declared_id != stem:
        what = "folder" if path.name == "target.yaml" else "file"
        problems.append(
            Problem(
                f"the id {declared_id!r} differs from the {what}'s name {stem!r}",
                file.name,
                file.line_of(("id",)),
                "id",
                f"write `id: {stem}` or rename the {what}",
            )
        )
    try:
        loaded = model.model_validate_json(json.dumps(file.data), context=references)
    except ValidationError as error:
        problems += explain(error, file, model)
        raise InvalidInputError(problems) from error
    if problems:
        raise InvalidInputError(problems)
    return loaded


def explain(error: ValidationError, file: YamlFile, model: type[BaseModel]) -> list[Problem]:
    """Turns pydantic's findings into problems with line, field and fix."""
    found = error.errors(include_url=False)
    # A list whose every entry is wrong is also reported as empty, which would only mislead.
    found = [
        details
        for details in found
        if details["type"] != "too_short"
        or not any(
            other["loc"][: len(details["loc"])] == details["loc"] for other in found if other is not details
        )
    ]
    return [_problem(details, file, model) for details in found]


def _problem(details: ErrorDetails, file: YamlFile, model: type[BaseModel]) -> Problem:
    path = _path_in_data(details["loc"], file.data)
    kind = details["type"]
    message = details["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    fix = _FIXES.get(kind)
    context = details.get("ctx", {})
    if kind == "extra_forbidden":
        message = "is not a known field"
        fix = _closest(str(path[-1]), _fields_at(model, details["loc"][:-1])) or "remove it"
    elif kind == "union_tag_invalid":
        tags = [tag.strip(" '") for tag in str(context["expected_tags"]).split(",")]
        path = (*path, "kind")
        message = f"{context['tag']!r} is not a known kind"
        fix = _closest(str(context["tag"]), tags) or f"use one of {', '.join(tags)}"
    elif kind == "union_tag_not_found":
        message, fix = "has no kind", "add `kind:`"
    elif kind == "missing":
        message = "is missing"
    elif kind == "value_error" and " (fix: " in message:
        message, _, fix = message.removesuffix(")").partition(" (fix: ")
    elif fix is None:
        expected = context.get("expected") or context.get("ge") or context.get("le")
        fix = f"use {expected}" if isinstance(expected, str) else "change the value"
        for bound, words in (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than")):
            if bound in context:
                fix = f"write {words} {context[bound]}"
    dotted = ".".join(map(str, path)) or None
    return Problem(message, file.name, file.line_of(path), dotted, fix)


def _path_in_data(location: tuple[int | str, ...], data: Any) -> FieldPath:
    """Drops the union tags that pydantic adds to a location but the file does not have."""
    path: list[str | int] = []
    node = data
    for part in location:
        if isinstance(node, dict):
            if part in node:
                node = node[part]
            elif node.get("kind") == part:
                continue
            else:
                node = None
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        path.append(part)
    return tuple(path)


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields allowed at a location, read from the model's JSON Schema."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    node: Any = schema
    for part in location:
        node = _resolve(node, definitions)
        if isinstance(part, int):
            node = node.get("items") or (node.get("prefixItems") or [{}])[0]
        elif part in node.get("properties", {}):
            node = node["properties"][part]
        else:
            mapping = node.get("discriminator", {}).get("mapping", {})
            node = {"$ref": mapping[part]} if part in mapping else {}
    return list(_resolve(node, definitions).get("properties", {}))


def _resolve(node: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = definitions[str(node["$ref"]).rsplit("/", 1)[-1]]
    for option in node.get("anyOf", []):
        if "$ref" in option or "properties" in option:
            return _resolve(option, definitions)
    return dict(node)


def _closest(word: str, known: list[str]) -> str | None:
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {match[0]!r}?" if match else None
