"""Result bundles with false seconds, as somebody who wants a better rank might write them."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from draftrank.measure.records import SessionResult
from draftrank.store.bundle import read_bundle
from draftrank.store.merging import in_order

SECONDS = ("decode_s", "propose_s", "verify_s")


def scale_seconds(data: dict[str, Any], arms: set[str], factor: float, *, hide: bool = False) -> None:
    """Multiplies the decode times of some arms and their parts.

    Args:
        data: a bundle, changed in place.
        arms: ids of the arms.
        factor: 0.9 leaves a tenth out.
        hide: lets every later trial begin earlier or later by what was changed before, so that no gap shows.
    """
    changed = 0.0
    for trial in sorted(data["trials"], key=lambda trial: trial["started_at"]):
        if hide:
            began = datetime.fromisoformat(trial["started_at"]) + timedelta(seconds=changed)
            trial["started_at"] = began.isoformat(timespec="milliseconds")
        if trial["arm"] in arms:
            changed += (factor - 1) * trial["decode_s"]
            for name in SECONDS:
                trial[name] *= factor


def version_2(result: SessionResult) -> dict[str, Any]:
    """A session of one draft as the JSON of a bundle of version 2, in which each trial is an object."""
    result = in_order(result)
    return {
        "schema_version": 2,
        "session": result.session.model_dump(mode="json"),
        "trials": [
            trial.model_dump(mode="json") | {"token_ids_sha256": trial.token_ids_sha256}
            for trial in result.trials
        ],
    }


def forge(source: Path | str, to: Path | str, share: float = 0.1, *, hide: bool = False) -> Path:
    """A copy of a bundle whose draft's times are all cut by a share; see `scale_seconds`."""
    data = version_2(read_bundle(Path(source)))
    scale_seconds(
        data, {arm["id"] for arm in data["session"]["arms"] if arm["kind"] == "draft"}, 1 - share, hide=hide
    )
    Path(to).write_text(json.dumps(data))
    return Path(to)
