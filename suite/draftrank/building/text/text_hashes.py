"""What stays of the text that a kept draft was made with: hashes, by which it is compared with prompts when it is gone.

Each user's message and each 13 words in a row have a hash of 48 bits. What text and prompts share is always found. With
half a million hashes, as 720,000 tokens give, and prompts of a hundred thousand words, something that they do not share is
found for one draft in five thousand. Such a find is a phrase, which refuses no draft, unless its prompt has at most 21 words.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from draftrank.building.text.overlap import Overlap, PromptIndex, Words, grams_of, said_in, words_of
from draftrank.errors import MissingDataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from draftrank.building.text.corpus import Corpus

MAX_BYTES = 20_000_000
"""Of one file of hashes: ten times what 720,000 tokens take."""
_BITS, _LOW = 48, 32
"""Bits of a hash, and those of them that are stored one by one; of the upper ones only how many hashes have them."""
_MESSAGE, _GRAM = b"message", b"gram"


@dataclass(frozen=True, slots=True)
class TextHashes:
    """Hashes of one corpus."""

    values: np.ndarray[Any, np.dtype[np.uint64]]
    """uint64 [hashes], ascending, each once."""

    @classmethod
    def of(cls, corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> TextHashes:
        """Of every message of a user and every run of words that `corpus_overlaps` looks at."""
        messages, texts = said_in(corpus, tokenizer)
        found = {_hash(_MESSAGE, words_of(message)) for message in messages}
        found |= {_hash(_GRAM, gram) for text in texts for gram in grams_of(words_of(text))}
        return cls(np.array(sorted(found), dtype=np.uint64))

    @classmethod
    def read(cls, path: Path) -> TextHashes:
        """Those that were kept.

        Raises:
            MissingDataError: there are none, or the file is not as it was written.
        """
        if not path.is_file():
            raise MissingDataError("no hashes of it are kept")
        try:
            if path.stat().st_size > MAX_BYTES:
                raise ValueError("it is larger than what is kept")
            stored = load_file(path)
            counts, low = stored["counts"], stored["low"]
            if counts.shape != (1 << (_BITS - _LOW),) or counts.sum() != len(low) or not len(low):
                raise ValueError("its parts do not fit together")
        except (SafetensorError, OSError, LookupError, ValueError) as error:
            raise MissingDataError(f"the kept hashes {path.name} are of no use: {error}") from error
        high = np.repeat(np.arange(len(counts), dtype=np.uint64), counts)
        return cls((high << np.uint64(_LOW)) | low.astype(np.uint64))

    def write(self, path: Path) -> None:
        """Keeps them: 4 bytes a hash, and 256 KiB.

        Raises:
            ValueError: they take more than `MAX_BYTES`.
        """
        counts = np.bincount(self.values >> np.uint64(_LOW), minlength=1 << (_BITS - _LOW))
        low = (self.values & np.uint64((1 << _LOW) - 1)).astype(np.uint32)
        if counts.nbytes // 2 + low.nbytes > MAX_BYTES:
            raise ValueError(f"{len(low):,} hashes take more than {MAX_BYTES / 1e6:.0f} MB")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"counts": counts.astype(np.uint32), "low": low}, path)

    def overlaps(self, index: PromptIndex) -> tuple[Overlap, ...]:
        """What prompts share with the text, as `corpus_overlaps` gives it."""
        return index.overlaps(self._having(_MESSAGE, index.messages), self._having(_GRAM, index.grams))

    def _having(self, kind: bytes, candidates: Iterable[Words]) -> set[Words]:
        words = list(candidates)
        hashes = np.array([_hash(kind, one) for one in words], dtype=np.uint64)
        return {words[place] for place in np.flatnonzero(np.isin(hashes, self.values))}


def _hash(kind: bytes, words: Iterable[str]) -> int:
    digest = blake2b(" ".join(words).encode(), digest_size=_BITS // 8, person=kind).digest()
    return int.from_bytes(digest, "big")
