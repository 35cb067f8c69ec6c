"""The form of a result bundle: its fields, its JSON Schema and its one way of being written.

The header is spread over lines, each trial is one line of values in the order that `columns` names: a reviewer
reads the first, and a diff of the second is one line per trial. What can be computed is left out:

- `token_ids` is null where they equal the first list of the same task, prompt and turn, which is the baseline's.
- `started_at` counts milliseconds from the session's `created_at`.
- Nested values leave out the fields that have their default.

Keys are sorted and only ASCII is written, so equal content has equal bytes, and no invisible character can hide
in a pull request.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from draftrank.catalog.base import sha256_of_json
from draftrank.catalog.field_docs import described
from draftrank.errors import InvalidInputError, Problem
from draftrank.measure.evidence import Record
from draftrank.measure.records import BASELINE, Session, SessionResult, Trial
from draftrank.store.bundle_checks import PUBLISH_AGAIN
from draftrank.store.merging import in_order, trial_order

SCHEMA_VERSION = 3
SCHEMA_FILE = Path(__file__).with_name("bundle.schema.json")
CELL = ("task", "prompt", "turn", "repeat", "attempt", "arm")
LAST = ("conditions", "judgement", "token_ids")
COLUMNS = (*CELL, *(name for name in Trial.model_fields if name not in (*CELL, *LAST)), *LAST)
"""The fields of a trial in the order in which they are written."""
MAX_TOKENS = 16_000_000
"""Tokens of all trials together, those that are not repeated in the file counted too."""


class Bundle(Record):
    """Results of one session: the baseline, its control, and drafts that were measured beside them."""

    schema_version: Literal[3]
    """Version of this form."""
    session: Session
    """The session's header."""
    columns: tuple[str, ...] = Field(json_schema_extra={"const": list(COLUMNS)})
    """The field that each value of a trial belongs to."""
    trials: tuple[tuple[Any, ...], ...]
    """Every trial of the session's arms, as the values of `columns`. `token_ids` is null where they are those of the
    first trial of the same task, prompt and turn; `started_at` is a number where it counts milliseconds from the session's
    `created_at`."""


def bundle_data(result: SessionResult) -> dict[str, Any]:
    """A result as the bundle's plain JSON value, in canonical order."""
    result = in_order(result)
    created = _moment(result.session.created_at)
    first: dict[tuple[str, str, int], tuple[int, ...]] = {}
    rows = []
    for trial in sorted(result.trials, key=_baseline_first):
        values = trial.model_dump(mode="json", exclude={"conditions", "judgement"})
        for name in ("conditions", "judgement"):
            nested = getattr(trial, name)
            values[name] = nested and nested.model_dump(mode="json", exclude_defaults=True)
        values["started_at"] = _since(created, trial.started_at)
        turn = (trial.task, trial.prompt, trial.turn)
        if turn in first and first[turn] == trial.token_ids:
            values["token_ids"] = None
        first.setdefault(turn, trial.token_ids)
        rows.append([values[name] for name in COLUMNS])
    return {
        "schema_version": SCHEMA_VERSION,
        "session": result.session.model_dump(mode="json"),
        "columns": list(COLUMNS),
        "trials": rows,
    }


def expanded(data: dict[str, Any], name: str) -> dict[str, Any]:
    """The records' JSON value of a bundle's: each trial as its fields with all its tokens. Values are not checked yet.

    Raises:
        InvalidInputError: `columns` names a field twice or none at all, a trial has more or fewer values, refers
            to tokens that no trial before it states, or all have more than `MAX_TOKENS` tokens; names the file as `name`.
    """
    columns, rows = data.get("columns"), data.get("trials")
    if not isinstance(columns, list) or not all(isinstance(one, str) for one in columns):
        raise _wrong(name, "columns", "is not a list of names")
    if len(set(columns)) < len(columns):
        raise _wrong(name, "columns", "names a field twice")
    if not isinstance(rows, list):
        raise _wrong(name, "trials", "is not a list")
    session = data.get("session")
    created = _moment(session.get("created_at") if isinstance(session, dict) else None)
    first: dict[tuple[Any, ...], Any] = {}
    trials, tokens = [], 0
    for index, row in enumerate(rows):
        field = f"trials.{index}"
        if not isinstance(row, list) or len(row) != len(columns):
            raise _wrong(name, field, f"is not a list of {len(columns)} values")
        trial = dict(zip(columns, row, strict=True))
        turn = tuple(map(repr, (trial.get("task"), trial.get("prompt"), trial.get("turn"))))
        if "token_ids" in trial and trial["token_ids"] is None:
            if turn not in first:
                raise _wrong(
                    name, f"{field}.token_ids", "no trial of the same prompt and turn before it states them"
                )
            trial["token_ids"] = first[turn]
        stated = trial.get("token_ids")
        first.setdefault(turn, stated)
        tokens += len(stated) if isinstance(stated, list) else 0
        if tokens > MAX_TOKENS:
            raise _wrong(name, field, f"is beyond {MAX_TOKENS} tokens of all trials together")
        trial["started_at"] = _from(created, trial.get("started_at"))
        trials.append(trial)
    rest = {key: value for key, value in data.items() if key not in ("schema_version", "columns")}
    return {**rest, "trials": trials}


def content_hash(data: dict[str, Any]) -> str:
    """The eight hex digits in a bundle's file name: they change with any value, not with the layout."""
    return sha256_of_json(data)[:8]


def render(data: dict[str, Any]) -> str:
    """The bundle's text."""
    trials = ",\n    ".join(compact(trial) for trial in data["trials"])
    return (
        "{\n"
        f'  "schema_version": {data["schema_version"]},\n'
        f'  "session": {spread(data["session"], "  ")},\n'
        f'  "columns": {compact(data["columns"], spaced=True)},\n'
        f'  "trials": [\n    {trials}\n  ]\n'
        "}\n"
    )


def bundle_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a bundle; `SCHEMA_FILE` holds the same."""
    schema, of_trial = described(Bundle.model_json_schema()), described(Trial.model_json_schema())
    fields = of_trial["properties"]
    fields["token_ids"] = {"anyOf": [fields["token_ids"], {"type": "null"}]}
    fields["started_at"] = {"anyOf": [fields["started_at"], {"type": "integer"}]}
    schema["$defs"] |= of_trial["$defs"]
    schema["properties"]["trials"]["items"] = {
        "type": "array",
        "prefixItems": [fields[name] for name in COLUMNS],
        "minItems": len(COLUMNS),
        "maxItems": len(COLUMNS),
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def schema_text() -> str:
    """The exact content of `SCHEMA_FILE`."""
    return json.dumps(bundle_schema(), indent=2) + "\n"


def _baseline_first(trial: Trial) -> tuple[Any, ...]:
    return (*trial.cell, trial.attempt, trial.arm != BASELINE, *trial_order(trial))


def _moment(text: Any) -> datetime | None:
    """A time in the form of `utc_now`; None for anything else."""
    try:
        moment = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    except (TypeError, ValueError):
        return None
    return moment if _written(moment) == text else None


def _written(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _since(created: datetime | None, text: str) -> int | str:
    """Milliseconds; the text itself where that would lose something."""
    moment = _moment(text)
    return text if created is None or moment is None else (moment - created) // timedelta(milliseconds=1)


def _from(created: datetime | None, stated: Any) -> Any:
    if created is None or not isinstance(stated, int) or isinstance(stated, bool):
        return stated
    try:
        return _written(created + timedelta(milliseconds=stated))
    except OverflowError:
        return stated


def _wrong(name: str, field: str, message: str) -> InvalidInputError:
    return InvalidInputError([Problem(message, name, None, field, PUBLISH_AGAIN)])


def spread(value: Any, indent: str) -> str:
    """JSON text: mappings and lists of such over lines; anything else, lists of plain values too, on one."""
    deeper = indent + "  "
    if isinstance(value, dict) and value:
        entries = [f"{compact(key)}: {spread(value[key], deeper)}" for key in sorted(value)]
        opening, closing = "{", "}"
    elif isinstance(value, list) and any(isinstance(entry, dict | list) for entry in value):
        entries = [spread(entry, deeper) for entry in value]
        opening, closing = "[", "]"
    else:
        return compact(value, spaced=True)
    return f"{opening}\n{deeper}" + f",\n{deeper}".join(entries) + f"\n{indent}{closing}"


def compact(value: Any, *, spaced: bool = False) -> str:
    """JSON text on one line."""
    separators = (", ", ": ") if spaced else (",", ":")
    return json.dumps(value, sort_keys=True, separators=separators)
