"""Parity with other engines as JSON files: `<target>/<draft>/<engine>/<date>-<hash>.json`.

Like result bundles they come from strangers, have one way of being written, and lie where their content says.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from draftrank.catalog.plain_text import fault_of_name
from draftrank.errors import InvalidInputError, Problem
from draftrank.measure.parity import Parity
from draftrank.store import serving_bundle
from draftrank.store.bundle import import_parsed, write_bundle
from draftrank.store.bundle_checks import MAX_PROBLEMS
from draftrank.store.bundle_format import compact, content_hash, spread
from draftrank.store.bundle_reading import parse_json, read_bytes

if TYPE_CHECKING:
    from draftrank.store.store import Store

SCHEMA_VERSION = 1
_AGAIN = "publish it again from its store"


def publish_parity(parity: Parity, folder: Path) -> Path:
    """Writes a record below the folder of all of them; equal content gives equal paths and bytes.

    Raises:
        InvalidInputError: its parts do not fit together; nothing has been written.
    """
    data = {"schema_version": SCHEMA_VERSION, "parity": parity.model_dump(mode="json")}
    path = folder / _place(checked(data, f"parity {parity.id}"), data)
    write_bundle(path, _rendered(data).encode("ascii"))
    return path


def read_parity(path: Path, folder: Path | None = None) -> Parity:
    """Reads and checks one file.

    Args:
        path: the file.
        folder: where all of them lie, when it must lie where its content says.

    Raises:
        InvalidInputError: it cannot be read, was changed, or does not add up; names file and field.
    """
    data = parse_json(read_bytes(path), str(path))
    parity = checked(data, str(path))
    belongs = _place(parity, data)
    if folder is not None and path.relative_to(folder) != belongs:
        raise InvalidInputError.single(
            "was changed after it was published, or does not lie where its content says",
            file=str(path),
            fix=f"restore it, or publish it again: it would be {belongs}",
        )
    return parity


def read_parities(folder: Path) -> tuple[Parity, ...]:
    """Every published record, oldest first.

    Raises:
        InvalidInputError: some are wrong; all are named.
    """
    found: list[Parity] = []
    problems: list[Problem] = []
    for path in sorted(folder.rglob("*.json")):
        try:
            found.append(read_parity(path, folder))
        except InvalidInputError as error:
            problems.extend(error.problems)
    if problems:
        raise InvalidInputError(problems)
    return tuple(sorted(found, key=lambda one: (one.created_at, one.id)))


def import_file(path: Path, store: Store) -> None:
    """Adds a result bundle, a parity record or a serving session to a store.

    Raises:
        InvalidInputError: it is none of them, or as `import_parsed`, `read_parity` and `read_serving`.
        StoreError: it contradicts what the store has.
    """
    data = parse_json(read_bytes(path), str(path))
    if "parity" in data:
        store.add_parity(checked(data, str(path)))
    elif "serving" in data:
        store.serving.add(serving_bundle.checked(data, str(path)))
    else:
        import_parsed(data, str(path), store)


def checked(data: dict[str, Any], name: str) -> Parity:
    """The record of a file's JSON object; errors name the file as `name`.

    Raises:
        InvalidInputError: with every problem found, up to `MAX_PROBLEMS`.
    """
    if data.get("schema_version") != SCHEMA_VERSION or set(data) != {"schema_version", "parity"}:
        raise InvalidInputError.single(
            f"is no parity record of version {SCHEMA_VERSION}",
            file=name,
            field="schema_version",
            fix="name a file below leaderboard/parity; for a newer one, update draftrank",
        )
    try:
        parity = Parity.model_validate_json(json.dumps(data["parity"]), strict=True)
    except ValidationError as error:
        raise InvalidInputError(
            Problem(
                details["msg"].removeprefix("Value error, "),
                name,
                None,
                ".".join(map(str, ("parity", *details["loc"]))),
                _AGAIN,
            )
            for details in error.errors()[:MAX_PROBLEMS]
        ) from error
    problems = [Problem(message, name, None, field, _AGAIN) for field, message in _problems(parity)]
    if problems:
        raise InvalidInputError(problems[:MAX_PROBLEMS])
    return parity


def _problems(parity: Parity) -> Iterator[tuple[str, str]]:
    for field in ("id", "engine_version", "suite", "form"):
        if fault := fault_of_name(getattr(parity, field)):
            yield f"parity.{field}", fault
    for index, task in enumerate(parity.tasks):
        if len(task.prompts) != len(task.turns):
            yield f"parity.tasks.{index}", "prompts and turns do not match one to one"
            return
    tasks = {task.task: task for task in parity.tasks}
    seen = Counter((turn.task, turn.prompt, turn.turn) for turn in parity.turns)
    for index, turn in enumerate(parity.turns):
        field, of = f"parity.turns.{index}", tasks.get(turn.task)
        if fault := fault_of_name(turn.prompt):
            yield f"{field}.prompt", fault
        if of is None or turn.prompt not in of.prompts:
            yield field, f"no task of the record has the prompt {turn.task}/{turn.prompt}"
            continue
        if turn.turn >= of.turns[of.prompts.index(turn.prompt)]:
            yield f"{field}.turn", "the prompt has fewer turns"
        if seen[turn.task, turn.prompt, turn.turn] > 1:
            yield field, "stands twice"
        outputs = (turn.plain_here, turn.draft_here, turn.plain_there, turn.draft_there)
        if max(len(turn.tokens(output)) for output in outputs) > of.max_new_tokens:
            yield field, "has more tokens than the task's max_new_tokens"


def _place(parity: Parity, data: dict[str, Any]) -> Path:
    name = f"{parity.created_at[:10]}-{content_hash(data)}.json"
    return Path(parity.target, parity.draft, parity.engine, name)


def _rendered(data: dict[str, Any]) -> str:
    """The header over lines, each prompt turn on one."""
    header = {name: value for name, value in data["parity"].items() if name != "turns"}
    turns = ",\n      ".join(map(compact, data["parity"]["turns"]))
    text = spread(header, "  ").removesuffix("\n  }")
    return f'{{\n  "schema_version": {SCHEMA_VERSION},\n  "parity": {text},\n    "turns": [\n      {turns}\n    ]\n  }}\n}}\n'
