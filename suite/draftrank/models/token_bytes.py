"""Which bytes of text each token of a tokenizer stands for.

Tokenizers print the same text in different ways: a space is `Ġ` in byte-level BPE and `▁` in SentencePiece, a line feed
`Ċ` or `<0x0A>`. Only the bytes behind these forms can be compared. A token may be part of a character, so bytes are no
text yet.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from draftrank.errors import UnsupportedModelError
from draftrank.models.prompting import special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPACE = "▁"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class TokenBytes:
    """The tokens of one tokenizer as bytes, and text as its tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Reads the vocabulary.

        Raises:
            UnsupportedModelError: the tokenizer prints tokens in a form that is not known.
        """
        self._tokenizer = tokenizer
        named = _decoders(tokenizer)
        byte_level, by_piece = "ByteLevel" in named, "Metaspace" in named or "Replace" in named
        if not byte_level and not by_piece:
            raise UnsupportedModelError(
                f"the bytes of the tokens of a {type(tokenizer).__name__} are not known, only those of byte-level BPE and of "
                "SentencePiece: use a draft model with the target's tokenizer"
            )
        added = tokenizer.added_tokens_decoder
        self.special: dict[int, str] = {
            index: str(tokenizer.convert_ids_to_tokens(index)) for index in sorted(special_ids(tokenizer))
        }
        """Printed form of the tokens that stand for no text, by id."""
        self.of_token: dict[int, bytes] = {}
        """Bytes of every other token, by id."""
        self._fallback: set[int] = set()
        for piece, index in sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1]):
            if index in self.special:
                continue
            single = _BYTE.fullmatch(piece) if "ByteFallback" in named else None
            if single is not None:
                self._fallback.add(index)
                self.of_token[index] = bytes.fromhex(single[1])
            elif index in added:
                text = piece.replace(_SPACE, " ") if by_piece else piece
                self.of_token[index] = text.encode()
            elif byte_level:
                self.of_token[index] = _from_byte_level(piece)
            else:
                self.of_token[index] = piece.replace(_SPACE, " ").encode()
        self.by_bytes: dict[bytes, int] = {}
        """The token with these bytes; of several the one that the tokenizer writes: no stand-in for a single byte, and
        the first."""
        for index in sorted(self.of_token, key=lambda index: (index in self._fallback, index)):
            self.by_bytes.setdefault(self.of_token[index], index)
        self.by_bytes.pop(b"", None)
        self._leading = self.of_token.get(next(iter(self.encode("x")), -1), b"").startswith(b" ")

    @property
    def leads_with_space(self) -> bool:
        """Whether the tokenizer puts a space before every text it is given."""
        return self._leading

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, nothing put around it; printed forms of special tokens become these."""
        found: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return list(found)

    def opening(self) -> list[int]:
        """What the tokenizer begins every text with: its beginning-of-text token, or nothing."""
        found: list[int] = list(self._tokenizer("").input_ids)
        return found[:1] if found[:1] == [self._tokenizer.bos_token_id] else []

    def first(self) -> int | None:
        """The token that a text begins with where there is nothing else to read; None: there is none."""
        tokenizer = self._tokenizer
        named = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        return None if named is None else int(named)

    def of(self, tokens: Iterable[int]) -> bytes:
        """Bytes of a text given as tokens. A special token gives its printed form, but the one that begins a text none."""
        begins = self._tokenizer.bos_token_id
        special = self.special
        return b"".join(
            self.of_token[token]
            if token in self.of_token
            else b""
            if token == begins
            else special.get(token, "").encode()
            for token in tokens
        )

    def spelled(self, text: bytes) -> list[int] | None:
        """One token for each byte; None where some byte has none."""
        found = [self.by_bytes.get(bytes((one,))) for one in text]
        return None if None in found else [token for token in found if token is not None]

    def can_write(self, text: bytes) -> bool:
        """Whether the tokens can be joined to these bytes, character by character or byte by byte."""
        characters = [one.encode() for one in text.decode(errors="ignore")]
        whole = b"".join(characters) == text and all(one in self.by_bytes for one in characters)
        return whole or self.spelled(text) is not None


def whole_text(data: bytes) -> tuple[str, bytes]:
    """Bytes as text, invalid ones replaced, and the beginning of a character at the end that is not whole yet."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data)
    return text, decoder.getstate()[0]


def valid_text(data: bytes) -> str:
    """The longest beginning of these bytes that is text."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        return data[: error.start].decode()


def _decoders(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """Kinds of what turns the tokens back into text."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return frozenset()
    return frozenset(_kinds(json.loads(decoder.__getstate__())))


def _kinds(state: dict[str, Any]) -> Iterable[str]:
    yield str(state.get("type"))
    for part in state.get("decoders", ()):
        yield from _kinds(part)


def _from_byte_level(piece: str) -> bytes:
    table = _byte_level_table()
    return b"".join(bytes((table[letter],)) if letter in table else letter.encode() for letter in piece)


@cache
def _byte_level_table() -> dict[str, int]:
    """The byte that each letter prints in byte-level BPE (GPT-2)."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {letter: byte for byte, letter in bytes_to_unicode().items()}
