"""Reads one YAML file into plain data and remembers the line of every field.

Only mappings, lists, text, numbers, booleans and null are read. Tags, anchors, aliases, merge keys
and duplicate keys are refused: a declaration is data, and two readers must see the same thing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.tokens import (
    AliasToken,
    AnchorToken,
    BlockEndToken,
    BlockMappingStartToken,
    BlockSequenceStartToken,
    FlowMappingEndToken,
    FlowMappingStartToken,
    FlowSequenceEndToken,
    FlowSequenceStartToken,
)

from draftrank.catalog.plain_text import unseen_in
from draftrank.errors import InvalidInputError, Problem

MAX_BYTES = 1_000_000
MAX_DEPTH = 30
MAX_WHOLE = 2**53 - 1
"""The largest whole number that every reader of JSON reads exactly."""
FieldPath = tuple[str | int, ...]

_OPENING = (
    BlockMappingStartToken,
    BlockSequenceStartToken,
    FlowMappingStartToken,
    FlowSequenceStartToken,
)
_CLOSING = (BlockEndToken, FlowMappingEndToken, FlowSequenceEndToken)
_SCALARS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null")}
_PLAIN = _SCALARS | {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}


@dataclass(slots=True)
class YamlFile:
    """Plain data of one file, and where each field stands in it."""

    name: str
    data: Any = None
    lines: dict[FieldPath, int] = field(default_factory=dict)

    def line_of(self, path: FieldPath) -> int | None:
        """1-based line of a field, or of the nearest enclosing one."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)

    def fault(self, message: str, fix: str, line: int | None = None) -> InvalidInputError:
        """An error that names the file."""
        return InvalidInputError.single(message, file=self.name, line=line, fix=fix)


class _Reader:
    def __init__(self, file: YamlFile) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.constructor = YAML(typ="safe", pure=True).constructor

    def problem(self, node: Node, path: FieldPath, message: str, fix: str) -> None:
        dotted = ".".join(map(str, path)) or None
        self.problems.append(Problem(message, self.file.name, node.start_mark.line + 1, dotted, fix))

    def read(self, node: Node, path: FieldPath) -> Any:
        self.file.lines.setdefault(path, node.start_mark.line + 1)
        tag = str(node.tag)
        if tag not in _PLAIN:
            self.problem(node, path, f"the tag {tag} is not allowed", "write plain text, numbers or lists")
            return None
        if len(path) > MAX_DEPTH:
            self.problem(node, path, "nested too deeply", f"use at most {MAX_DEPTH} levels")
            return None
        if isinstance(node, MappingNode):
            return self.mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, ScalarNode)
        return self.scalar(node, path)

    def mapping(self, node: MappingNode, path: FieldPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not (isinstance(key_node, ScalarNode) and str(key_node.tag).endswith(":str")):
                self.problem(key_node, path, "a field name must be text", "put it in quotes")
                continue
            key = str(key_node.value)
            if unseen := unseen_in(key):
                self.problem(key_node, path, f"a field name holds the unseen character {unseen}", "remove it")
                continue
            if key in result:
                self.problem(key_node, (*path, key), "the field stands twice", "keep one of them")
                continue
            self.file.lines[(*path, key)] = key_node.start_mark.line + 1
            result[key] = self.read(value_node, (*path, key))
        return result

    def scalar(self, node: ScalarNode, path: FieldPath) -> Any:
        try:
            value = self.constructor.construct_object(node)
        except (ConstructorError, ValueError):
            self.problem(node, path, f"cannot read {node.value[:40]!r}", "put text in quotes")
            return None
        if isinstance(value, float) and not math.isfinite(value):
            self.problem(node, path, "the number is not finite", "write an ordinary number")
            return None
        if isinstance(value, int) and abs(value) > MAX_WHOLE:
            self.problem(node, path, "the number is too large", f"write at most {MAX_WHOLE}")
            return None
        if isinstance(value, str) and (unseen := unseen_in(value)):
            self.problem(node, path, f"holds the unseen character {unseen}", "remove it")
            return None
        return value


def read_yaml(path: Path, name: str | None = None) -> YamlFile:
    """Reads `path`; errors name the file as `name` (default: the path itself).

    Raises:
        InvalidInputError: the file is missing, too large, not UTF-8, not YAML, or more than plain data.
    """
    file = YamlFile(name or str(path))
    try:
        if not path.is_file():  # a pipe or a device would be read for ever
            raise file.fault("is not a file", "check the path")
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise file.fault(f"cannot be read: {error.strerror}", "check the path") from error
    if len(raw) > MAX_BYTES:
        raise file.fault(f"has more than {MAX_BYTES} bytes", "declare less in one file")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise file.fault("is not UTF-8 text", "save it as UTF-8", line) from error
    try:
        node = _compose(text, file)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise file.fault(
            f"is not valid YAML: {error.problem or error.context}",
            "check the indentation and quotes near this line",
            mark.line + 1 if mark else None,
        ) from error
    except (YAMLError, RecursionError, ValueError) as error:
        raise file.fault(f"is not valid YAML: {str(error).splitlines()[0]}", "mend the file") from error
    if node is None:
        raise file.fault("is empty", "start from `draftrank new`")
    reader = _Reader(file)
    file.data = reader.read(node, ())
    if reader.problems:
        raise InvalidInputError(reader.problems)
    return file


def _compose(text: str, file: YamlFile) -> Node | None:
    parser = YAML(typ="safe", pure=True)
    depth = 0
    for token in parser.scan(text):
        depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
        line = token.start_mark.line + 1
        if depth > MAX_DEPTH + 1:  # the scanner's time grows with the square of the depth
            raise file.fault("nested too deeply", f"use at most {MAX_DEPTH} levels", line)
        if isinstance(token, AnchorToken | AliasToken):
            raise file.fault("anchors and aliases are not allowed", "write the value out", line)
    node = YAML(typ="safe", pure=True).compose(text)
    return node if isinstance(node, Node) else None
