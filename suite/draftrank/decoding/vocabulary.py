"""A draft may only serve a target that reads its tokens the same way."""

from __future__ import annotations

import json
from pathlib import Path

from draftrank.errors import IncompatibleDraftError


def check_vocabularies(target_folder: Path, draft_folder: Path) -> None:
    """Compares the two vocabularies token by token: equal sizes with other tokens corrupt output.

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
    raise IncompatibleDraftError(
        f"the vocabularies differ in {len(differing)} tokens, first {token!r}: id {target.get(token, 'none')} in "
        f"the target and {draft.get(token, 'none')} in the draft. Use a draft with the target's own tokenizer"
    )


def read_vocabulary(folder: Path) -> dict[str, int]:
    """Token text → id, added tokens included, as the folder's tokenizer has it."""
    from draftrank.drafting.loading import load_tokenizer

    cached = folder / "tokenizer.json"
    if cached.is_file():
        content = json.loads(cached.read_text("utf-8"))
        vocabulary = content.get("model", {}).get("vocab")
        if isinstance(vocabulary, dict):
            added = {entry["content"]: entry["id"] for entry in content.get("added_tokens", [])}
            return {**vocabulary, **added}
    found: dict[str, int] = load_tokenizer(folder).get_vocab()
    return found
