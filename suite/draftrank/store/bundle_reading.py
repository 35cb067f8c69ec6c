"""From a bundle's bytes to checked records. Bundles come from strangers: nothing in them is trusted."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from draftrank.catalog.backend import OLDER_NAMES
from draftrank.errors import InvalidInputError, Problem
from draftrank.measure.records import SessionResult, sha256_of_ids
from draftrank.store.bundle_checks import MAX_PROBLEMS, PUBLISH_AGAIN, find_problems, refused
from draftrank.store.bundle_format import SCHEMA_VERSION, expanded

T = TypeVar("T")
_SKIPPED = re.compile(r"task (\S+) is skipped:")

_OTHER_FILES = {"parity": "parity record", "serving": "serving session"}
"""What else is published, by the field that only such files have."""
MAX_BYTES = 64_000_000
MAX_WHOLE = 2**53 - 1
"""The largest whole number that JavaScript, too, reads exactly; SQLite holds larger ones still."""


def read_bytes(path: Path) -> bytes:
    """A bundle's bytes, one more than `MAX_BYTES` at most.

    Raises:
        InvalidInputError: the file is missing or cannot be read.
    """
    try:
        if not path.is_file():
            raise InvalidInputError.single("is not a file", file=str(path), fix="name a bundle's .json file")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidInputError.single(
            f"cannot be read: {error.strerror}", file=str(path), fix="check the path"
        ) from error


def parse_json(content: bytes, name: str) -> dict[str, Any]:
    """The JSON object of a bundle's bytes; errors name the file as `name`.

    Raises:
        InvalidInputError: it is larger than `MAX_BYTES`, or no JSON object of plain finite values.
    """
    if len(content) > MAX_BYTES:
        raise InvalidInputError.single(
            f"has more than {MAX_BYTES} bytes", file=name, fix="measure fewer prompts per session"
        )
    try:
        data = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_int=_whole,
            parse_float=_finite,
            parse_constant=_finite,
        )
    except json.JSONDecodeError as error:
        raise InvalidInputError.single(
            f"is not valid JSON: {error.msg}", file=name, line=error.lineno, fix="publish it again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidInputError.single(
            f"is not valid JSON: {error}", file=name, fix="publish it again"
        ) from error
    if not isinstance(data, dict):
        raise InvalidInputError.single("is not a JSON object", file=name, fix="name a bundle's .json file")
    return data


def read_each(paths: Iterable[Path], read: Callable[[Path], T]) -> list[T]:
    """What a reader makes of each file.

    Raises:
        InvalidInputError: some are wrong; all are named.
    """
    found: list[T] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            found.append(read(path))
        except InvalidInputError as error:
            problems.extend(error.problems)
    if problems:
        raise InvalidInputError(problems)
    return found


def require_place(path: Path, folder: Path, belongs: Path) -> None:
    """A published file lies where its content says.

    Raises:
        InvalidInputError: it lies elsewhere below `folder`.
    """
    if path.relative_to(folder) != belongs:
        raise InvalidInputError.single(
            "was changed after it was published, or does not lie where its content says",
            file=str(path),
            fix=f"restore it, or publish it again: it would be {belongs}",
        )


def bundle_result(data: dict[str, Any], name: str) -> SessionResult:
    """The checked records of a bundle's JSON object; errors name the file as `name`.

    Raises:
        InvalidInputError: with every problem found, up to `MAX_PROBLEMS`.
    """
    for key, what in _OTHER_FILES.items():
        if key in data:
            raise InvalidInputError.single(
                f"is a {what} and no result bundle", file=name, fix="name a file of leaderboard/results/"
            )
    version = data.get("schema_version")
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise InvalidInputError.single(
            f"is {'missing' if version is None else repr(version)}, this draftrank reads 1 to {SCHEMA_VERSION}",
            file=name,
            field="schema_version",
            fix="name a result bundle; for a newer one, update draftrank",
        )
    if version == 1:
        data = _from_version_1(data)
    plain = _from_version_2(data, name) if version < SCHEMA_VERSION else expanded(data, name)
    try:
        text = json.dumps(plain, ensure_ascii=False).encode()
        result = SessionResult.model_validate_json(text, strict=True)
    except UnicodeEncodeError as error:
        half, before = error.object[error.start], error.object[max(0, error.start - 30) : error.start]
        raise InvalidInputError.single(
            f"holds half of a surrogate pair, U+{ord(half):04X}, behind {before!r}",
            file=name,
            fix="mend that text and publish the session again",
        ) from error
    except RecursionError as error:
        raise InvalidInputError.single("is nested too deeply", file=name, fix="publish it again") from error
    except ValidationError as error:
        raise refused(error, name, PUBLISH_AGAIN) from error
    problems = find_problems(result, name)
    if version < SCHEMA_VERSION and sum(arm.kind == "draft" for arm in result.session.arms) > 1:
        problems.append(Problem("has more than one draft", name, None, "session.arms", PUBLISH_AGAIN))
    if problems:
        raise InvalidInputError(problems)
    return result


def _from_version_1(data: dict[str, Any]) -> dict[str, Any]:
    """Version 2 added fields that have defaults, and names skipped tasks instead of only warning of them."""
    session = data.get("session")
    if isinstance(session, dict) and isinstance(session.get("warnings"), list):
        found = (_SKIPPED.match(text) for text in session["warnings"] if isinstance(text, str))
        session = {**session, "skipped_tasks": [match[1] for match in found if match]}
    return {**data, "schema_version": 2, "session": session}


def _from_version_2(data: dict[str, Any], name: str) -> dict[str, Any]:
    """Version 3 names backends as they are chosen and the target interval width by that name. Version 2 wrote each trial
    as an object, with the hash of its tokens."""
    session = data.get("session")
    if isinstance(session, dict):
        session = dict(session)
        for old, new in (("runtime", "backend"), ("precision", "target_ci")):
            if old in session and new not in session:
                session[new] = session.pop(old)
        if isinstance(session.get("backend"), str):
            session["backend"] = OLDER_NAMES.get(session["backend"], session["backend"])
        if session.get("stopped_by") == "precision":
            session["stopped_by"] = "target_ci"
        data = {**data, "session": session}
    trials = data.get("trials")
    problems: list[Problem] = []
    plain = []
    for index, trial in enumerate(trials) if isinstance(trials, list) else ():
        fields = trial
        if isinstance(trial, dict):
            fields = {key: value for key, value in trial.items() if key != "token_ids_sha256"}
            if "token_ids_sha256" not in trial:
                field = f"trials.{index}.token_ids_sha256"
                problems.append(Problem("Field required", name, None, field, PUBLISH_AGAIN))
            elif trial["token_ids_sha256"] != _hash_of(trial.get("token_ids")):
                told = "token_ids_sha256 is not the hash of token_ids: one was changed"
                problems.append(Problem(told, name, None, f"trials.{index}", PUBLISH_AGAIN))
        plain.append(fields)
    if problems:
        raise InvalidInputError(problems[:MAX_PROBLEMS])
    rest = {key: value for key, value in data.items() if key != "schema_version"}
    return {**rest, "trials": plain} if isinstance(trials, list) else rest


def _hash_of(token_ids: Any) -> str | None:
    return sha256_of_ids(token_ids) if isinstance(token_ids, list) else None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} stands twice")
        found[key] = value
    return found


def _whole(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > MAX_WHOLE:
        raise ValueError(f"the whole number {text[:20]} is too large")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is not finite")
    return value
