"""Serving sessions as JSON files: `<target>/<server>/<date>-<hash>.json`, one file a session.

Values that are a record's defaults are left out; every prompt turn and every round has a line of its own.
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
from draftrank.measure.fidelity.divergence import first_difference
from draftrank.measure.records import BASELINE, CONTROL
from draftrank.measure.serving_records import PromptTurn, Round, ServedRequest, ServingResult, ServingSession
from draftrank.store.bundle_checks import is_identifier
from draftrank.store.bundle_format import compact, content_hash, spread
from draftrank.store.merging import rounds_in_order
from draftrank.store.record_files import RecordFiles, turn_problems

_VERSION = 1
MAX_TEXT = 20_000
"""Characters of a log's end and other free text."""
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")
_ROUNDING_S = 1e-3
"""By how much stamps in whole microseconds and the round's seconds may differ."""


def _problems(result: ServingResult, data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    found = [*_session_problems(result.session), *_round_problems(result)]
    yield from found
    if not found and json.loads(_rendered(result)) != data:
        yield "session", "is not in canonical form"


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
    for field, message in turn_problems(
        session.tasks, session.turns, lambda index: len(session.turns[index].token_ids)
    ):
        yield f"session.{field}", message
    for index, turn in enumerate(session.turns):
        if len(turn.token_ids) > turn.max_new_tokens:
            yield f"session.turns.{index}", "has more tokens than its max_new_tokens"


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


def _place(result: ServingResult, data: dict[str, Any]) -> Path:
    session = result.session
    return Path(session.target, session.server, f"{session.created_at[:10]}-{content_hash(data)}.json")


def _rendered(result: ServingResult) -> bytes:
    """The header over lines, each prompt turn and each round on one."""
    data = rounds_in_order(result).model_dump(mode="json", exclude_defaults=True)
    session = data["session"]
    turns = ",\n        ".join(map(compact, session.pop("turns")))
    rounds = ",\n      ".join(map(compact, data["rounds"]))
    header = spread(session, "    ").removesuffix("\n    }")
    content = (
        f'{{\n  "schema_version": {_VERSION},\n  "serving": {{\n    "session": {header},\n'
        f'      "turns": [\n        {turns}\n      ]\n    }},\n    "rounds": [\n      {rounds}\n    ]\n  }}\n}}\n'
    )
    return content.encode("ascii")


SERVING_FILES = RecordFiles(
    key="serving",
    name="serving session",
    published="leaderboard/serving",
    version=_VERSION,
    model=ServingResult,
    rendered=_rendered,
    place=_place,
    problems=_problems,
    age=lambda result: (result.session.created_at, result.session.id),
)
"""Serving sessions."""
