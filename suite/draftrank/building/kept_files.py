"""Where drafts that are kept beside their recipes lie, without what reads their weights."""

from __future__ import annotations

import json
from pathlib import Path

from draftrank.catalog.draft import DraftBase
from draftrank.models.cache import CODE_VERSIONS, draft_key

KEPT = "kept"
"""Folder beside the recipes of a target."""


def hashes_path(folder: Path, corpus: str) -> Path:
    """Where hashes of the corpus of this key are kept, in the target's folder of recipes."""
    return folder / KEPT / "text" / f"{corpus}.safetensors"


def kept_files(draft: DraftBase, target_weights_sha256: str, folder: Path) -> tuple[Path, ...]:
    """Every file that is kept of a draft, or of the first of its steps: descriptions, weights, hashes of texts, sorted.

    Args:
        draft: the declaration.
        target_weights_sha256: identity of the target.
        folder: the target's folder of recipes.
    """
    found: set[Path] = set()
    for described in (folder / KEPT).glob("*.json"):
        try:
            told = json.loads(described.read_text("utf-8"))
            key, facts = told["key"], told["facts"]
            versions = facts.get(CODE_VERSIONS, {})
            counts = range(1, len(draft.build_steps) + 1)
            if key in {draft_key(draft, target_weights_sha256, count, versions) for count in counts}:
                texts = (hashes_path(folder, corpus) for corpus in facts.get("corpora", ()))
                found |= {described, described.with_suffix(".safetensors"), *texts}
        except (ValueError, LookupError, TypeError, AttributeError, OSError):
            continue  # a build says why it is of no use
    return tuple(sorted(path for path in found if path.is_file()))
