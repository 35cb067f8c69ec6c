"""The one way a declaration is written: what `draftrank check --fix` makes of it.

First line: the schema for editors. Then the fields in the schema's order, block style, two spaces,
comments kept beside the field they stand above.
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from draftrank.catalog.base import Declared
from draftrank.catalog.schemas import FOLDER, schema_name

_HEADER = re.compile(r"^# yaml-language-server:(?: *\$schema=(?P<path>\S+))?.*\n")
_MARKS = ("%", "---", "...")
"""Directives and the marks of a document's start and end say nothing here."""
_TOP_LEVEL = re.compile(r"""^["']?(?P<key>[A-Za-z_]\w*)["']?\s*:""")


def canonical_text(text: str, model: type[Declared], schema_path: str) -> str:
    """The canonical form of a valid declaration's text; applying it twice changes nothing more.

    Args:
        text: the file's content; must be valid for `model`.
        schema_path: path of the schema relative to the file, for the first line.
    """
    text = _HEADER.sub("", text)
    reader = YAML()
    reader.preserve_quotes = True
    data = reader.load(text)
    data.fa.set_block_style()
    body = yaml_text(data)
    stripped = "".join(line.rstrip() + "\n" for line in body.splitlines())
    header = f"# yaml-language-server: $schema={schema_path}\n"
    # Blanks at a line's end are content in a literal block: a form that changes content is not used.
    for candidate in (stripped, body):
        form = _ordered(candidate, list(model.model_fields)).strip("\n") + "\n"
        if _same_content(form, text):
            return header + form
    return header + text


def yaml_text(content: Any, line_width: int = 4096) -> str:
    """A value as YAML in block style, fields in the order given."""
    writer = YAML()
    writer.width = line_width
    writer.indent(mapping=2, sequence=4, offset=2)
    text = io.StringIO()
    writer.dump(content, text)
    return text.getvalue()


def is_canonical(path: Path, model: type[Declared]) -> bool:
    """Whether a valid file is written the canonical way."""
    return _wanted(path, model) == path.read_text("utf-8")


def format_file(path: Path, model: type[Declared]) -> bool:
    """Rewrites a valid file in canonical form; True when that changed it."""
    if is_canonical(path, model):
        return False
    path.write_text(_wanted(path, model), "utf-8")
    return True


def _wanted(path: Path, model: type[Declared]) -> str:
    text = path.read_text("utf-8")
    return canonical_text(text, model, _schema_path(path, text, model))


def _schema_path(path: Path, text: str, model: type[Declared]) -> str:
    """Where the file's first line points.

    In a workspace that does not hold the schemas, their place differs from machine to machine: there a
    first line that names them already stays as it is.
    """
    ours = any((folder / "drafts").is_dir() and FOLDER.is_relative_to(folder) for folder in path.parents)
    present = _HEADER.match(text)
    if present and present["path"] and not ours:
        return present["path"]
    relative = os.path.relpath(FOLDER / f"{schema_name(model)}.json", path.parent)
    return Path(relative).as_posix()


def _same_content(first: str, second: str) -> bool:
    try:
        return bool(YAML(typ="safe", pure=True).load(first) == YAML(typ="safe", pure=True).load(second))
    except YAMLError:
        return False


def _ordered(body: str, fields: list[str]) -> str:
    """Top-level blocks in the order of the fields; a comment belongs to the field below it."""
    blocks: dict[str, str] = {}
    pending = ""
    key: str | None = None
    for line in body.splitlines(keepends=True):
        start = _TOP_LEVEL.match(line)
        if line.startswith(_MARKS):
            continue
        if start:
            key = start["key"]
            blocks[key] = pending + line
            pending = ""
        elif key is None or line.startswith("#") or not line.strip():
            pending += line
        else:
            blocks[key] += pending + line
            pending = ""
    rank = {name: index for index, name in enumerate(fields)}
    ordered = sorted(blocks, key=lambda name: rank.get(name, len(rank)))
    return "".join(blocks[name] for name in ordered) + pending
