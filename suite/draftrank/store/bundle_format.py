"""The form of a result bundle: its fields, its JSON Schema and its one way of being written.

The header is spread over lines, each trial stands on one: a reviewer reads the first and a diff of the
second is one line per trial. Keys are sorted and only ASCII is written, so equal content has equal
bytes, and no invisible character can hide in a pull request.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from draftrank.catalog.base import Sha256, sha256_of_json
from draftrank.measure.record import Record
from draftrank.measure.records import Session, SessionResult, Trial
from draftrank.store.merging import in_order

SCHEMA_VERSION = 3
SCHEMA_FILE = Path(__file__).with_name("bundle.schema.json")


class BundleTrial(Trial):
    """A trial with the hash of its tokens: an altered output shows, and outputs compare at a glance."""

    stated_sha256: Sha256 = Field(alias="token_ids_sha256")
    """sha256 of the token ids, written in decimal and joined by commas."""

    @model_validator(mode="after")
    def _states_its_tokens(self) -> BundleTrial:
        if self.stated_sha256 != self.token_ids_sha256:
            raise ValueError("token_ids_sha256 is not the hash of token_ids: one was changed")
        return self


class Bundle(Record):
    """One draft's results of one session, with the baseline trials they are compared to."""

    schema_version: Literal[3]
    """Version of this form."""
    session: Session
    """The session's header; its arms are the baseline, its control and one draft."""
    trials: tuple[BundleTrial, ...]
    """Every trial of these arms."""

    def result(self) -> SessionResult:
        """The records, without what the bundle adds to them."""
        fields = Trial.model_fields
        trials = (Trial(**{name: getattr(trial, name) for name in fields}) for trial in self.trials)
        return SessionResult(session=self.session, trials=tuple(trials))


def bundle_data(result: SessionResult) -> dict[str, Any]:
    """A result as the bundle's plain JSON value, in canonical order."""
    result = in_order(result)
    return {
        "schema_version": SCHEMA_VERSION,
        "session": result.session.model_dump(mode="json"),
        "trials": [
            trial.model_dump(mode="json") | {"token_ids_sha256": trial.token_ids_sha256}
            for trial in result.trials
        ],
    }


def content_hash(data: dict[str, Any]) -> str:
    """The eight hex digits in a bundle's file name: they change with any value, not with the layout."""
    return sha256_of_json(data)[:8]


def render(data: dict[str, Any]) -> str:
    """The bundle's text."""
    trials = ",\n    ".join(_compact(trial) for trial in data["trials"])
    return (
        "{\n"
        f'  "schema_version": {data["schema_version"]},\n'
        f'  "session": {_spread(data["session"], "  ")},\n'
        f'  "trials": [\n    {trials}\n  ]\n'
        "}\n"
    )


def bundle_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a bundle; `SCHEMA_FILE` holds the same."""
    schema = Bundle.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def schema_text() -> str:
    """The exact content of `SCHEMA_FILE`."""
    return json.dumps(bundle_schema(), indent=2) + "\n"


def _spread(value: Any, indent: str) -> str:
    """Mappings and lists of such over lines; anything else, lists of plain values too, on one."""
    deeper = indent + "  "
    if isinstance(value, dict) and value:
        entries = [f"{_compact(key)}: {_spread(value[key], deeper)}" for key in sorted(value)]
        opening, closing = "{", "}"
    elif isinstance(value, list) and any(isinstance(entry, dict | list) for entry in value):
        entries = [_spread(entry, deeper) for entry in value]
        opening, closing = "[", "]"
    else:
        return _compact(value, spaced=True)
    return f"{opening}\n{deeper}" + f",\n{deeper}".join(entries) + f"\n{indent}{closing}"


def _compact(value: Any, *, spaced: bool = False) -> str:
    separators = (", ", ": ") if spaced else (",", ":")
    return json.dumps(value, sort_keys=True, separators=separators)
