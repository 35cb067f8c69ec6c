"""A draft may only serve a target that reads its tokens the same way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from draftrank.errors import IncompatibleDraftError


def check_vocabularies(target_folder: Path, draft_folder: Path) -> None:
    """Compares the tokenizers' vocabularies token by token: a draft that reads other text proposes nonsense.

    How many rows the models have beyond their tokens is no difference: see `models.vocabulary_rows`.

    Raises:
        IncompatibleDraftError: some token id means different text, or only one side has it.
    """
    target, draft = read_vocabulary(target_folder), read_vocabulary(draft_folder)
    if target == draft:
        return
    differing = sorted(
        token for token in target.keys() | draft.keys() if target.get(token) != draft.get(token)
    )
    token = differing[0]
    ids = [f"id {one[token]}" if token in one else "no id" for one in (target, draft)]
    raise IncompatibleDraftError(
        f"the vocabularies differ in {len(differing)} tokens, first {token!r}: {ids[0]} in the target and {ids[1]} in "
        "the draft. Use a draft with the target's own tokenizer"
    )


def check_ids(ids: Sequence[int], rows: int) -> None:
    """Sees that token ids are a model's own before something reads memory by them.

    Raises:
        IndexError: one of them is outside its embedding.
    """
    if ids and (min(ids) < 0 or max(ids) >= rows):
        unknown = next(token for token in ids if not 0 <= token < rows)
        raise IndexError(f"token id {unknown} is outside the embedding's {rows} rows")


def read_vocabulary(folder: Path) -> dict[str, int]:
    """Token text → id, added tokens included, as the folder's tokenizer has it."""
    from draftrank.models.loading import load_tokenizer

    cached = folder / "tokenizer.json"
    if cached.is_file():
        content = json.loads(cached.read_text("utf-8"))
        vocabulary = content.get("model", {}).get("vocab")
        if isinstance(vocabulary, dict):
            added = {entry["content"]: entry["id"] for entry in content.get("added_tokens", [])}
            return {**vocabulary, **added}
    found: dict[str, int] = load_tokenizer(folder).get_vocab()
    return found
