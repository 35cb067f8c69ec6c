"""Which tokens of a draft and its target mean the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from draftrank.errors import IncompatibleDraftError

if TYPE_CHECKING:
    from draftrank.models.token_bytes import TokenBytes


def check_vocabularies(target_folder: Path, draft_folder: Path) -> None:
    """Compares the tokenizers' vocabularies token by token: a draft that reads other text proposes nonsense.

    Tokens that only one side has added, beside those of the vocabulary that both were trained with, are no difference,
    and neither is how many rows the models have beyond their tokens: see `models.vocabulary_rows`.

    Raises:
        IncompatibleDraftError: some token id means different text, or only one side's trained vocabulary has it.
    """
    target, draft = _Tokens.read(target_folder), _Tokens.read(draft_folder)
    differing = sorted(
        token for token in target.ids.keys() | draft.ids.keys() if not _agree(token, target, draft)
    )
    if not differing:
        return
    token = differing[0]
    ids = [f"id {one.ids[token]}" if token in one.ids else "no id" for one in (target, draft)]
    raise IncompatibleDraftError(
        f"the vocabularies differ in {len(differing)} tokens, first {token!r}: {ids[0]} in the target and {ids[1]} in "
        "the draft. Use a draft with the target's own tokenizer, or write `vocabulary: token_intersection` or "
        "`vocabulary: string_match` in its recipe"
    )


@dataclass(frozen=True, slots=True)
class SharedTokens:
    """The tokens that two vocabularies have in common, whatever their ids and printed forms."""

    to_draft: dict[int, int]
    """Target's id → draft's id, ascending; no id occurs twice on either side."""

    @classmethod
    def of(cls, target: TokenBytes, draft: TokenBytes) -> SharedTokens:
        """Pairs the tokens of equal bytes, and special tokens of equal printed form.

        Special tokens of different forms are not paired: that both end a turn does not make them one token.

        Raises:
            IncompatibleDraftError: there are none.
        """
        theirs = {text: token for token, text in draft.special.items()}
        pairs = {token: theirs[text] for token, text in target.special.items() if text in theirs}
        pairs |= {
            token: draft.by_bytes[text] for text, token in target.by_bytes.items() if text in draft.by_bytes
        }
        if not pairs:
            raise IncompatibleDraftError(
                "the vocabularies have no token in common, so token_intersection could propose nothing: write "
                "`vocabulary: string_match`, or use another draft model"
            )
        return cls(dict(sorted(pairs.items())))

    def within(self, target_rows: int, draft_rows: int, head: frozenset[int] | None) -> SharedTokens:
        """Only those that both models have rows for and the draft's head, where it is trimmed to some ids, knows.

        Raises:
            IncompatibleDraftError: there are none.
        """
        kept = {
            ours: theirs
            for ours, theirs in self.to_draft.items()
            if ours < target_rows and theirs < draft_rows and (head is None or theirs in head)
        }
        if not kept:
            raise IncompatibleDraftError(
                "the draft's head knows none of the tokens that both vocabularies have: raise keep_tokens in "
                "trim_vocabulary"
            )
        return SharedTokens(kept)


def check_ids(ids: Sequence[int], rows: int) -> None:
    """Sees that token ids are a model's own before something reads memory by them.

    Raises:
        IndexError: one of them is outside its embedding.
    """
    if ids and (min(ids) < 0 or max(ids) >= rows):
        unknown = next(token for token in ids if not 0 <= token < rows)
        raise IndexError(f"token id {unknown} is outside the embedding's {rows} rows")


@dataclass(frozen=True)
class _Tokens:
    """A vocabulary."""

    ids: dict[str, int]
    """Printed form → id, added tokens included."""
    added: frozenset[str]
    """Those that were added to the trained ones."""

    @cached_property
    def taken(self) -> frozenset[int]:
        """All ids."""
        return frozenset(self.ids.values())

    @classmethod
    def read(cls, folder: Path) -> _Tokens:
        """As the folder's tokenizer has it."""
        from draftrank.models.loading import load_tokenizer

        cached = folder / "tokenizer.json"
        if cached.is_file():
            content = json.loads(cached.read_text("utf-8"))
            vocabulary = content.get("model", {}).get("vocab")
            if isinstance(vocabulary, dict):
                added = {entry["content"]: entry["id"] for entry in content.get("added_tokens", [])}
                return cls({**vocabulary, **added}, frozenset(added))
        tokenizer = load_tokenizer(folder)
        return cls(
            tokenizer.get_vocab(), frozenset(one.content for one in tokenizer.added_tokens_decoder.values())
        )


def _agree(token: str, target: _Tokens, draft: _Tokens) -> bool:
    if token in target.ids and token in draft.ids:
        return target.ids[token] == draft.ids[token]
    one, other = (target, draft) if token in target.ids else (draft, target)
    return token in one.added and one.ids[token] not in other.taken
