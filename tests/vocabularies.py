"""Tokenizers of both common kinds, small enough to follow by hand, and text that is awkward for them."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

SPACE = "▁"
Merges = Sequence[tuple[str, str]]
MERGES = (("a", "b"), ("b", "a"), ("ab", "ab"), ("c", "a"), ("a", "ca"))
TEXTS = st.text(st.sampled_from("ab ca\n.é你🙂"), max_size=12)


def byte_level(
    merges: Merges = MERGES, special: Sequence[str] = ("<s>", "</s>"), letters: Sequence[str] | None = None
) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2's: every byte is a token, unless only some `letters` are.

    Args:
        merges: pairs of printed forms, in which a space is `Ġ`.
        special: special tokens, which come first; the first begins texts but is not added, the second ends them.
        letters: its single bytes; None: all.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if letters is None else list(letters)
    names = [*special, *alphabet, *(left + right for left, right in merges)]
    backend = Tokenizer(tokenizer_models.BPE(vocab=_numbered(names), merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _wrapped(backend, special)


def pieces(
    merges: Merges = MERGES,
    special: Sequence[str] = ("<bos>", "<eos>", "<end_of_turn>"),
    letters: str = "abc. " + "\n",
    *,
    fallback: bool = True,
    leading: bool = False,
) -> PreTrainedTokenizerFast:
    """BPE over characters, as SentencePiece's: a space is `▁`, and characters that are no token are spelled in bytes.

    Args:
        merges: pairs of printed forms.
        special: special tokens, which come first; the first begins texts but is not added, the second ends them.
        letters: its single characters.
        fallback: whether it has the bytes.
        leading: whether it puts a space before every text, as Llama 2's does.
    """
    single = [letter.replace(" ", SPACE) for letter in letters]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)] if fallback else []
    names = [*special, *bytes_, *single, *(left + right for left, right in merges)]
    model = tokenizer_models.BPE(vocab=_numbered(names), merges=list(merges), byte_fallback=fallback)
    backend = Tokenizer(model)
    replaced = normalizers.Replace(" ", SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replaced]) if leading else replaced
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*parts, *([decoders.Strip(" ", 1, 0)] if leading else [])])
    return _wrapped(backend, special)


def tokenizers_of_all_kinds() -> dict[str, PreTrainedTokenizerFast]:
    """By what sets them apart."""
    spaced = (("▁", "a"), ("b", "▁"), ("a", "b"), ("b", "c"), (".", "\n"))
    return {
        "bytes": byte_level(),
        "other bytes": byte_level((("Ġ", "a"), ("b", "c"), ("a", "bc")), ("<|end|>", "</s>")),
        "pieces": pieces(spaced, letters="abc. \né"),
        "pieces that lead with a space": pieces(spaced, leading=True),
        "pieces without bytes": pieces(spaced, letters="abc. \né你🙂", fallback=False),
    }


def _numbered(names: Sequence[str]) -> dict[str, int]:
    return {name: index for index, name in enumerate(dict.fromkeys(names))}


def _wrapped(backend: Tokenizer, special: Sequence[str]) -> PreTrainedTokenizerFast:
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    named = dict(zip(("bos_token", "eos_token"), special, strict=False))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named)
