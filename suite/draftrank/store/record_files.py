"""Records of one kind as JSON files that come from strangers: each has one way of being written, and lies where its content
says."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from draftrank.catalog.plain_text import fault_of_name
from draftrank.errors import InvalidInputError, Problem
from draftrank.measure.parity import ParityTurn
from draftrank.measure.records import SessionTask
from draftrank.measure.serving_records import PromptTurn
from draftrank.store.bundle import write_bundle
from draftrank.store.bundle_checks import MAX_PROBLEMS, refused
from draftrank.store.bundle_reading import parse_json, read_bytes, read_each, require_place

R = TypeVar("R", bound=BaseModel)
AGAIN = "publish it again from its store"


@dataclass(frozen=True, slots=True)
class RecordFiles(Generic[R]):
    """How one kind of record is written and read."""

    key: str
    """The field of the file that has the record, beside `schema_version`."""
    name: str
    """What such a file is called."""
    published: str
    """The folder of all of them in a workspace."""
    version: int
    """Value of `schema_version`."""
    model: type[R]
    """The record."""
    rendered: Callable[[R], bytes]
    """A record as the bytes of its file."""
    place: Callable[[R, dict[str, Any]], Path]
    """From a record and its file's JSON, where the file lies below that folder."""
    problems: Callable[[R, dict[str, Any]], Iterable[tuple[str, str]]]
    """What does not fit together, as field of the record and message."""
    age: Callable[[R], tuple[str, str]]
    """When a record was made, and its id."""

    def publish(self, record: R, folder: Path) -> Path:
        """Writes a record below the folder of all of them; equal content gives equal paths and bytes.

        Raises:
            InvalidInputError: its parts do not fit together; nothing has been written.
        """
        content = self.rendered(record)
        name = f"{self.name} {self.age(record)[1]}"
        data = parse_json(content, name)  # published is only what can be read again, by the same checks
        path = folder / self.place(self.checked(data, name), data)
        write_bundle(path, content)
        return path

    def read(self, path: Path, folder: Path | None = None) -> R:
        """Reads and checks one file, which must lie where its content says if the folder of all of them is named.

        Raises:
            InvalidInputError: it cannot be read, was changed, or does not add up; names file and field.
        """
        data = parse_json(read_bytes(path), str(path))
        record = self.checked(data, str(path))
        if folder is not None:
            require_place(path, folder, self.place(record, data))
        return record

    def read_all(self, folder: Path) -> tuple[R, ...]:
        """Every published record, oldest first.

        Raises:
            InvalidInputError: some are wrong; all are named.
        """
        found = read_each(sorted(folder.rglob("*.json")), lambda path: self.read(path, folder))
        return tuple(sorted(found, key=self.age))

    def checked(self, data: dict[str, Any], name: str) -> R:
        """The record of a file's JSON object; errors name the file as `name`.

        Raises:
            InvalidInputError: with every problem found, up to `MAX_PROBLEMS`.
        """
        if data.get("schema_version") != self.version or set(data) != {"schema_version", self.key}:
            raise InvalidInputError.single(
                f"is no {self.name} of version {self.version}",
                file=name,
                field="schema_version",
                fix=f"name a file below {self.published}; for a newer one, update draftrank",
            )
        try:
            record = self.model.model_validate_json(json.dumps(data[self.key]), strict=True)
        except ValidationError as error:
            raise refused(error, name, AGAIN, within=(self.key,)) from error
        problems = [
            Problem(message, name, None, f"{self.key}.{field}", AGAIN)
            for field, message in self.problems(record, data)
        ]
        if problems:
            raise InvalidInputError(problems[:MAX_PROBLEMS])
        return record


def turn_problems(
    tasks: Sequence[SessionTask], turns: Sequence[ParityTurn | PromptTurn], longest: Callable[[int], int]
) -> Iterator[tuple[str, str]]:
    """What does not fit between a record's tasks and its prompt turns, as field and message; `longest` gives, from the
    index of a turn, the most tokens that an output of it has."""
    for index, task in enumerate(tasks):
        if len(task.prompts) != len(task.turns):
            yield f"tasks.{index}", "prompts and turns do not match one to one"
            return
    by_id = {task.task: task for task in tasks}
    seen = Counter((turn.task, turn.prompt, turn.turn) for turn in turns)
    for index, turn in enumerate(turns):
        field, of = f"turns.{index}", by_id.get(turn.task)
        if fault := fault_of_name(turn.prompt):
            yield f"{field}.prompt", fault
        if of is None or turn.prompt not in of.prompts:
            yield field, f"no task of the record has the prompt {turn.task}/{turn.prompt}"
            continue
        if turn.turn >= of.turns[of.prompts.index(turn.prompt)]:
            yield f"{field}.turn", "the prompt has fewer turns"
        if seen[turn.task, turn.prompt, turn.turn] > 1:
            yield field, "stands twice"
        if longest(index) > of.max_new_tokens:
            yield field, "has more tokens than the task's max_new_tokens"
