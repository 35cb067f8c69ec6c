"""Which tokens end an output, as the target's own files say."""

from __future__ import annotations

import json
from pathlib import Path


def read_stop_tokens(folder: Path) -> frozenset[int]:
    """Every end-of-sequence id that the folder's generation or model configuration names."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if path.is_file():
            content = json.loads(path.read_text("utf-8"))
            ids = content.get("eos_token_id")
            found.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
    return frozenset(found)
