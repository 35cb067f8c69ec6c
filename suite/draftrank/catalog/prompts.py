"""From a task's data to its prompts."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from draftrank.catalog.plain_text import MISLEADING, fault_of_name, unseen_in
from draftrank.catalog.prompt_rows import ReadRows
from draftrank.catalog.sources.base import FetchContext, SourceBase
from draftrank.catalog.sources.inline import InlineSource
from draftrank.catalog.task import Suite, SuiteTask, Task
from draftrank.errors import InvalidInputError, Problem

MAX_REPORTED = 20
MAX_BYTES = 256_000_000
"""Of a file of prompts, unpacked."""
_FIELD = re.compile(r"\{([A-Za-z_][\w-]*(?:\.[\w-]+)*)\}")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One conversation to decode."""

    id: str
    turns: tuple[str, ...]
    """User messages in order."""
    reference: str | None = None
    """Exact final answer, where the task has one."""


@dataclass(frozen=True, slots=True)
class TaskPrompts:
    """A task with the prompts that one run uses."""

    task: Task
    prompts: tuple[Prompt, ...]
    max_new_tokens: int


def read_prompts(task: Task, context: FetchContext) -> tuple[Prompt, ...]:
    """All prompts of a task.

    Raises:
        MissingDataError: the data cannot be had now.
        InvalidInputError: the data is not what the task declares, with every bad row.
    """
    return prompts_of(task.source, task.read, context, f"tasks/{task.id}.yaml")


def prompts_of(source: SourceBase, read: ReadRows, context: FetchContext, file: str) -> tuple[Prompt, ...]:
    """All prompts of a source; `file` is where it is declared, for messages.

    Raises: see `read_prompts`.
    """
    if isinstance(source, InlineSource):
        rows = list(enumerate(source.rows(), start=1))
        name = file
    else:
        path = source.fetch(context)
        name = path.name
        rows = _read_json_lines(path)
    prompts: list[Prompt] = []
    problems: list[Problem] = []
    seen: set[str] = set()
    for line, row in rows:
        try:
            prompt = _prompt_of_row({"row": line, **row}, read)
        except (KeyError, ValueError) as error:
            told = f"the row has no field {error.args[0]!r}" if isinstance(error, KeyError) else str(error)
            problems.append(Problem(told, name, line, fix="mend the row or `read`"))
            continue
        if prompt.id in seen:
            problems.append(
                Problem(f"the prompt id {prompt.id!r} stands twice", name, line, "id", "make ids unique")
            )
        seen.add(prompt.id)
        prompts.append(prompt)
    if problems:
        raise InvalidInputError(problems[:MAX_REPORTED])
    if not prompts:
        raise InvalidInputError.single("holds no prompts", file=name, fix="add at least one row")
    return tuple(prompts)


def select_prompts(suite: Suite, entry: SuiteTask, task: Task, prompts: tuple[Prompt, ...]) -> TaskPrompts:
    """The suite's share of a task: prompts at even distances, so that no part of the file is favoured."""
    count = min(entry.prompts or len(prompts), len(prompts))
    chosen = tuple(prompts[index * len(prompts) // count] for index in range(count))
    limit = min(task.max_new_tokens, suite.max_new_tokens or task.max_new_tokens)
    return TaskPrompts(task, chosen, limit)


def _content(path: Path) -> bytes:
    """A file's bytes, unpacked where they are gzipped: never more than `MAX_BYTES` of them."""
    with path.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        content = (gzip.GzipFile(fileobj=stream) if packed else stream).read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise InvalidInputError.single(
            f"holds more than {MAX_BYTES // 1_000_000} MB", file=path.name, fix="declare fewer prompts"
        )
    return content


def _read_json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        text = _content(path).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InvalidInputError.single(
            f"cannot be read: {error}", file=path.name, fix="use UTF-8 JSON Lines, plain or gzipped"
        ) from error
    rows: list[tuple[int, dict[str, Any]]] = []
    problems: list[Problem] = []
    lines = text.split("\n")  # not splitlines: JSON text may hold other line separators
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=_not_finite)
        except (ValueError, RecursionError) as error:
            told = f"the line is {'cut off' if number == len(lines) else 'not JSON'}: {error}"
            problems.append(Problem(told, path.name, number, fix="fetch or write the file again"))
            continue
        if isinstance(row, dict):
            rows.append((number, row))
        else:
            told = "the line is not a JSON object"
            problems.append(Problem(told, path.name, number, fix="write one object per line"))
    if problems:
        raise InvalidInputError(problems[:MAX_REPORTED])
    if not rows:
        raise InvalidInputError.single("holds no prompts", file=path.name, fix="add at least one row")
    return rows


def _not_finite(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _prompt_of_row(row: dict[str, Any], read: ReadRows) -> Prompt:
    if read.turns_from is not None:
        turns = _lookup(row, read.turns_from)
        if not (isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns)):
            raise ValueError(f"the field {read.turns_from!r} is not a list of texts")
    else:
        turns = [_fill(template, row) for template in read.turns or ()]
    if not all(turn.strip() for turn in turns):
        raise ValueError("a turn is empty")
    for turn in turns:
        if unseen := unseen_in(turn, MISLEADING):
            raise ValueError(f"a turn holds the unseen character {unseen}")
    reference = _fill(read.reference, row) if read.reference is not None else None
    if read.reference is None and isinstance(row.get("reference"), str):
        reference = row["reference"]
    if reference is not None and (unseen := unseen_in(reference, MISLEADING)):
        raise ValueError(f"the reference holds the unseen character {unseen}")
    name = _fill(read.id, row)
    if fault := fault_of_name(name):
        raise ValueError(f"the prompt's id {fault}")
    return Prompt(name, tuple(turns), reference)


def _lookup(row: Any, dotted: str) -> Any:
    node = row
    for part in dotted.split("."):
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict) and part in node:
            node = node[part]
        else:
            raise KeyError(dotted)
    return node


def _fill(template: str, row: dict[str, Any]) -> str:
    def value(match: re.Match[str]) -> str:
        found = _lookup(row, match[1])
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)

    return _FIELD.sub(value, template)
