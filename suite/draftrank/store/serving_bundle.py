"""Serving sessions as JSON files: `<target>/<server>/<date>-<hash>.json`, one file a session.

They come from strangers, have one way of being written, and lie where their content says. Values that are a record's
defaults are left out; every prompt turn and every round has a line of its own.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from draftrank.catalog.plain_text import fault_of_name, unseen_in
from draftrank.catalog.server import Server
from draftrank.errors import InvalidInputError, Problem
from draftrank.measure.fidelity.divergence import first_difference
from draftrank.measure.records import BASELINE, CONTROL
from draftrank.measure.serving_records import PromptTurn, Round, ServedRequest, ServingResult, ServingSession
from draftrank.store.bundle import write_bundle
from draftrank.store.bundle_checks import MAX_PROBLEMS, is_identifier
from draftrank.store.bundle_format import compact, content_hash, spread
from draftrank.store.bundle_reading import parse_json, read_bytes
from draftrank.store.serving import in_order

SCHEMA_VERSION = 1
MAX_TEXT = 20_000
"""Characters of a log's end and other free text."""
_AGAIN = "publish it again from its store"
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")
_ROUNDING_S = 1e-3
"""By how much stamps in whole microseconds and the round's seconds may differ."""


def publish_serving(result: ServingResult, folder: Path) -> Path:
    """Writes a session below the folder of all of them; equal content gives equal paths and bytes.

    Raises:
        InvalidInputError: its parts do not fit together; nothing has been written.
    """
    content = _rendered(_data(result)).encode("ascii")
    name = f"serving session {result.session.id}"
    data = parse_json(content, name)  # published is only what can be read again, by the same checks
    path = folder / _place(checked(data, name).session, data)
    write_bundle(path, content)
    return path


def read_serving(path: Path, folder: Path | None = None) -> ServingResult:
    """Reads and checks one file.

    Args:
        path: the file.
        folder: where all of them lie, when it must lie where its content says.

    Raises:
        InvalidInputError: it cannot be read, was changed, or does not add up; names file and field.
    """
    data = parse_json(read_bytes(path), str(path))
    result = checked(data, str(path))
    belongs = _place(result.session, data)
    if folder is not None and path.relative_to(folder) != belongs:
        raise InvalidInputError.single(
            "was changed after it was published, or does not lie where its content says",
            file=str(path),
            fix=f"restore it, or publish it again: it would be {belongs}",
        )
    return result


def read_serving_sessions(folder: Path) -> tuple[ServingResult, ...]:
    """Every published session, oldest first.

    Raises:
        InvalidInputError: some are wrong; all are named.
    """
    found: list[ServingResult] = []
    problems: list[Problem] = []
    for path in sorted(folder.rglob("*.json")):
        try:
            found.append(read_serving(path, folder))
        except InvalidInputError as error:
            problems.extend(error.problems)
    if problems:
        raise InvalidInputError(problems)
    return tuple(sorted(found, key=lambda one: (one.session.created_at, one.session.id)))


def checked(data: dict[str, Any], name: str) -> ServingResult:
    """The session of a file's JSON object; errors name the file as `name`.

    Raises:
        InvalidInputError: with every problem found, up to `MAX_PROBLEMS`.
    """
    if data.get("schema_version") != SCHEMA_VERSION or set(data) != {"schema_version", "serving"}:
        raise InvalidInputError.single(
            f"is no serving session of version {SCHEMA_VERSION}",
            file=name,
            field="schema_version",
            fix="name a file below leaderboard/serving; for a newer one, update draftrank",
        )
    try:
        result = ServingResult.model_validate_json(json.dumps(data["serving"]), strict=True)
    except ValidationError as error:
        raise InvalidInputError(
            Problem(
                details["msg"].removeprefix("Value error, "),
                name,
                None,
                ".".join(map(str, ("serving", *details["loc"]))),
                _AGAIN,
            )
            for details in error.errors()[:MAX_PROBLEMS]
        ) from error
    problems = [
        Problem(message, name, None, f"serving.{field}", _AGAIN)
        for field, message in (*_session_problems(result.session), *_round_problems(result))
    ]
    if not problems and json.loads(_rendered(_data(result))) != data:
        problems = [Problem("is not in canonical form", name, None, "serving", _AGAIN)]
    if problems:
        raise InvalidInputError(problems[:MAX_PROBLEMS])
    return result


def _session_problems(session: ServingSession) -> Iterator[tuple[str, str]]:
    for field in ("id", "engine", "engine_version", "suite", "draftrank_version"):
        if fault := fault_of_name(getattr(session, field)):
            yield f"session.{field}", fault
    if not _TIME.fullmatch(session.created_at):
        yield "session.created_at", "is no UTC time of the form YYYY-MM-DDThh:mm:ssZ"
    yield from _declared_problems(session)
    kinds = [arm.kind for arm in session.arms]
    if kinds[:1] != ["baseline"] or kinds.count("baseline") != 1 or kinds.count("control") > 1:
        yield "session.arms", "are not the baseline, its twin and drafts"
    for name, count in Counter(arm.id for arm in session.arms).items():
        if count > 1:
            yield "session.arms", f"{name!r} stands {count} times"
    for index, arm in enumerate(session.arms):
        if not is_identifier(arm.id) or (arm.kind == "draft") == (arm.id in (BASELINE, CONTROL)):
            yield f"session.arms.{index}.id", f"{arm.id!r} does not fit the kind {arm.kind!r}"
        if (arm.kind == "draft") != (arm.draft_id is not None):
            yield f"session.arms.{index}.draft_id", "stands with drafts, and only there"
        texts = (arm.failure, arm.log_tail, *arm.flags, *arm.differs)
        if any(_is_no_text(text) for text in texts if text is not None):
            yield f"session.arms.{index}", "holds text that is too long or not visible"
    if any(map(_is_no_text, (*session.warnings, *session.skipped_tasks))):
        yield "session.warnings", "hold text that is too long or not visible"
    if list(session.concurrencies) != sorted(set(session.concurrencies)):
        yield "session.concurrencies", "are not ascending"
    yield from _turn_problems(session)


def _declared_problems(session: ServingSession) -> Iterator[tuple[str, str]]:
    try:
        declared = Server.model_validate_json(json.dumps(session.server_declared))
    except ValidationError as error:
        yield "session.server_declared", f"is no server: {error.errors()[0]['msg']}"
        return
    if declared.id != session.server:
        yield "session.server_declared", f"declares {declared.id!r} and not {session.server!r}"
    if declared.content_sha256() != session.server_sha256:
        yield "session.server_sha256", "is not the hash of the declaration: one was changed"
    if (declared.engine, declared.dtype, declared.device) != (session.engine, session.dtype, session.device):
        yield "session.server_declared", "is of another engine, dtype or device than the session"


def _turn_problems(session: ServingSession) -> Iterator[tuple[str, str]]:
    tasks = {task.task: task for task in session.tasks}
    for index, task in enumerate(session.tasks):
        if len(task.prompts) != len(task.turns):
            yield f"session.tasks.{index}", "prompts and turns do not match one to one"
            return
    seen = Counter((turn.task, turn.prompt, turn.turn) for turn in session.turns)
    for index, turn in enumerate(session.turns):
        field, of = f"session.turns.{index}", tasks.get(turn.task)
        if fault := fault_of_name(turn.prompt):
            yield f"{field}.prompt", fault
        if of is None or turn.prompt not in of.prompts:
            yield field, f"no task of the session has the prompt {turn.task}/{turn.prompt}"
            continue
        if turn.turn >= of.turns[of.prompts.index(turn.prompt)]:
            yield f"{field}.turn", "the prompt has fewer turns"
        if seen[turn.task, turn.prompt, turn.turn] > 1:
            yield field, "stands twice"
        if turn.max_new_tokens > of.max_new_tokens or len(turn.token_ids) > turn.max_new_tokens:
            yield field, "has more tokens than the task's max_new_tokens"


def _round_problems(result: ServingResult) -> Iterator[tuple[str, str]]:
    session = result.session
    arms = {arm.id for arm in session.arms}
    seen = Counter(one.key for one in result.rounds)
    for index, one in enumerate(result.rounds):
        field = f"rounds.{index}"
        if one.arm not in arms:
            yield f"{field}.arm", f"the session has no arm {one.arm!r}"
        if one.concurrency not in session.concurrencies or one.rate != session.rate:
            yield f"{field}.concurrency", "is none of the session's"
        if seen[one.key] > 1:
            yield field, "stands twice"
        if not one.requests:
            yield f"{field}.requests", "are none"
        for place, request in enumerate(one.requests):
            if request.turn >= len(session.turns):
                yield f"{field}.requests.{place}.turn", "the session has fewer turns"
                continue
            for message in _request_problems(one, request, session.turns[request.turn]):
                yield f"{field}.requests.{place}", message


def _request_problems(one: Round, request: ServedRequest, turn: PromptTurn) -> Iterator[str]:
    if request.done_us / 1e6 > one.wall_s + _ROUNDING_S:
        yield "ends after its round"
    if any(_is_no_text(text) for text in (request.failure, request.disagreement) if text is not None):
        yield "holds text that is too long or not visible"
    if request.end == "failed":
        return
    tokens = turn.token_ids if request.token_ids is None else request.token_ids
    if len(tokens) > turn.max_new_tokens or len(tokens) != request.tokens:
        yield f"has {request.tokens} arrivals for {len(tokens)} tokens of at most {turn.max_new_tokens}"
    differs = first_difference(turn.token_ids, tokens)
    if request.token_ids is not None and differs is None:
        yield "repeats the token ids of its turn"
    told = request.divergence
    if told is not None and told.index != differs:
        yield "has a divergence that does not fit its token ids"
    if request.accepted is not None and request.accepted > max(0, request.tokens - 1):
        yield f"accepted {request.accepted} of {request.tokens} tokens"


def _is_no_text(text: str) -> bool:
    return len(text) > MAX_TEXT or unseen_in(text) is not None


def _place(session: ServingSession, data: dict[str, Any]) -> Path:
    return Path(session.target, session.server, f"{session.created_at[:10]}-{content_hash(data)}.json")


def _data(result: ServingResult) -> dict[str, Any]:
    ordered = in_order(result)
    return {
        "schema_version": SCHEMA_VERSION,
        "serving": ordered.model_dump(mode="json", exclude_defaults=True),
    }


def _rendered(data: dict[str, Any]) -> str:
    """The header over lines, each prompt turn and each round on one."""
    session = dict(data["serving"]["session"])
    turns = ",\n        ".join(map(compact, session.pop("turns")))
    rounds = ",\n      ".join(map(compact, data["serving"]["rounds"]))
    header = spread(session, "    ").removesuffix("\n    }")
    return (
        f'{{\n  "schema_version": {data["schema_version"]},\n  "serving": {{\n    "session": {header},\n'
        f'      "turns": [\n        {turns}\n      ]\n    }},\n    "rounds": [\n      {rounds}\n    ]\n  }}\n}}\n'
    )
