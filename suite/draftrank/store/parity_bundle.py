"""Parity with other engines as JSON files: `<target>/<draft>/<engine>/<date>-<hash>.json`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from draftrank.catalog.plain_text import fault_of_name
from draftrank.measure.parity import Parity
from draftrank.store.bundle_format import compact, content_hash, spread
from draftrank.store.record_files import RecordFiles, turn_problems

_VERSION = 1


def _problems(parity: Parity, data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    del data
    for field in ("id", "engine_version", "suite", "form"):
        if fault := fault_of_name(getattr(parity, field)):
            yield field, fault

    def longest(index: int) -> int:
        turn = parity.turns[index]
        outputs = (turn.plain_here, turn.draft_here, turn.plain_there, turn.draft_there)
        return max(len(turn.tokens(output)) for output in outputs)

    yield from turn_problems(parity.tasks, parity.turns, longest)


def _place(parity: Parity, data: dict[str, Any]) -> Path:
    name = f"{parity.created_at[:10]}-{content_hash(data)}.json"
    return Path(parity.target, parity.draft, parity.engine, name)


def _rendered(parity: Parity) -> bytes:
    """The header over lines, each prompt turn on one."""
    header = parity.model_dump(mode="json")
    turns = ",\n      ".join(map(compact, header.pop("turns")))
    text = spread(header, "  ").removesuffix("\n  }")
    content = f'{{\n  "schema_version": {_VERSION},\n  "parity": {text},\n    "turns": [\n      {turns}\n    ]\n  }}\n}}\n'
    return content.encode("ascii")


PARITY_FILES = RecordFiles(
    key="parity",
    name="parity record",
    published="leaderboard/parity",
    version=_VERSION,
    model=Parity,
    rendered=_rendered,
    place=_place,
    problems=_problems,
    age=lambda parity: (parity.created_at, parity.id),
)
"""Parity records."""
