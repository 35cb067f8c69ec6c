"""Tokens as the bytes that they stand for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from draftrank.errors import UnsupportedModelError
from draftrank.models.token_bytes import TokenBytes, valid_text, whole_text
from vocabularies import TEXTS, byte_level, pieces, tokenizers_of_all_kinds

KINDS = tokenizers_of_all_kinds()
BYTES = {name: TokenBytes(tokenizer) for name, tokenizer in KINDS.items()}


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS)
def test_the_bytes_of_the_tokens_of_a_text_are_the_text(kind, text):
    found = BYTES[kind].of(BYTES[kind].encode(text)).decode()
    leads = " " if BYTES[kind].leads_with_space and text else ""
    assert found == leads + text


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_every_token_are_what_its_tokenizer_decodes_it_to(kind):
    """Tokenizers decode to text, so only whole characters can be compared; they are most tokens."""
    tokenizer, compared = KINDS[kind], 0
    for token, data in BYTES[kind].of_token.items():
        # behind a letter, since some take a space away from the beginning
        text = tokenizer.decode([*BYTES[kind].encode("b")[-1:], token], clean_up_tokenization_spaces=False)
        if "\ufffd" not in text:
            assert text == "b" + data.decode(), token
            compared += 1
    assert compared > 6


def test_every_byte_can_be_spelled_where_the_vocabulary_has_it():
    data = bytes(range(256))
    for kind in ("bytes", "pieces"):
        assert BYTES[kind].of(BYTES[kind].spelled(data)) == data
    assert BYTES["pieces without bytes"].spelled("é".encode()) is None
    assert BYTES["pieces without bytes"].can_write("é你".encode())
    assert not BYTES["pieces without bytes"].can_write("ü".encode())
    assert BYTES["bytes"].can_write("ü".encode()[:1])


def test_a_byte_that_is_a_piece_too_is_the_piece():
    """`<0x61>` and `a` are the same text, and the tokenizer writes the latter."""
    tokens = BYTES["pieces"]
    assert tokens.by_bytes[b"a"] == tokens.encode("a")[0] == KINDS["pieces"].convert_tokens_to_ids("a")


def test_special_tokens_stand_for_no_text():
    tokenizer = pieces()
    tokens = TokenBytes(tokenizer)
    first, last, turn = (
        tokenizer.convert_tokens_to_ids(name) for name in ("<bos>", "<eos>", "<end_of_turn>")
    )
    assert tokens.special == {first: "<bos>", last: "<eos>", turn: "<end_of_turn>"}
    assert not set(tokens.special) & set(tokens.of_token)
    assert tokens.of([first, *tokens.encode("ab"), turn]) == b"ab<end_of_turn>"
    assert tokens.first() == first
    assert tokens.opening() == []


def test_a_tokenizer_that_begins_every_text_with_a_token():
    tokenizer = byte_level()
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<s> $0", special_tokens=[("<s>", 0)])
    assert TokenBytes(tokenizer).opening() == [0]


def test_a_tokenizer_whose_bytes_are_not_known_is_refused_with_the_way_out():
    backend = Tokenizer(tokenizer_models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(UnsupportedModelError, match="use a draft model with the target's tokenizer"):
        TokenBytes(PreTrainedTokenizerFast(tokenizer_object=backend))


@given(text=TEXTS, cut=st.integers(0, 3))
def test_the_beginning_of_a_character_is_held_back(text, cut):
    data = text.encode()
    data = data[: max(0, len(data) - cut)]
    found, pending = whole_text(data)
    assert found.encode() + pending == data
    assert found == text[: len(found)]
    assert len(pending) < 4
    assert valid_text(data) == found


def test_bytes_that_are_no_text_are_replaced_within_and_end_a_valid_text():
    assert whole_text(b"a\xffb") == ("a\ufffdb", b"")
    assert valid_text(b"a\xffb") == "a"
