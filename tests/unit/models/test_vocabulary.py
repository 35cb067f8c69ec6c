"""Which tokens of two vocabularies mean the same."""

from __future__ import annotations

import itertools

import pytest
from tokenizers import AddedToken

from draftrank.errors import IncompatibleDraftError
from draftrank.models.token_bytes import TokenBytes
from draftrank.models.vocabulary import SharedTokens, check_vocabularies
from models import small_tokenizer
from vocabularies import byte_level, pieces, tokenizers_of_all_kinds

KINDS = tokenizers_of_all_kinds()


@pytest.mark.parametrize(("one", "other"), itertools.permutations(KINDS, 2))
def test_shared_tokens_are_those_that_both_decode_to_the_same_text(one, other):
    shared = SharedTokens.of(TokenBytes(KINDS[one]), TokenBytes(KINDS[other])).to_draft
    assert len(set(shared.values())) == len(shared)
    assert list(shared) == sorted(shared)

    def texts(tokenizer, special):
        """Decoded behind a letter, since some take a space away from the beginning."""
        b = tokenizer.convert_tokens_to_ids("b")
        ids = set(tokenizer.get_vocab().values())
        chosen = ids & set(tokenizer.all_special_ids) if special else ids - set(tokenizer.all_special_ids)
        return {token: tokenizer.decode([b, token], clean_up_tokenization_spaces=False) for token in chosen}

    for special in (False, True):
        ours, theirs = texts(KINDS[one], special), texts(KINDS[other], special)
        for token, text in ours.items():
            if "\ufffd" not in text:
                assert (text in theirs.values()) == (text in {ours[t] for t in shared if t in ours})
            if token in shared:
                assert theirs[shared[token]] == text


def test_ends_of_turns_of_different_names_are_not_the_same_token():
    target, draft = TokenBytes(pieces()), TokenBytes(byte_level(special=("<s>", "<|im_end|>", "<eos>")))
    shared = SharedTokens.of(target, draft).to_draft
    special = {token: text for token, text in target.special.items() if token in shared}
    assert set(special.values()) == {"<eos>"}
    assert draft.special[shared[min(special)]] == "<eos>"


def test_vocabularies_without_a_common_token_are_refused_with_the_way_out():
    letters = [TokenBytes(byte_level((), (f"<{one}>",), one)) for one in ("x", "y")]
    with pytest.raises(IncompatibleDraftError, match=r"no token in common.*`vocabulary: string_match`"):
        SharedTokens.of(*letters)


def test_shared_tokens_within_both_models_and_a_trimmed_head():
    shared = SharedTokens({1: 5, 2: 3, 9: 4})
    assert shared.within(10, 6, None) == shared
    assert shared.within(9, 6, None).to_draft == {1: 5, 2: 3}
    assert shared.within(10, 5, None).to_draft == {2: 3, 9: 4}
    assert shared.within(10, 6, frozenset({4, 7})).to_draft == {9: 4}
    with pytest.raises(IncompatibleDraftError, match="raise keep_tokens"):
        shared.within(10, 6, frozenset({0}))


def saved(folder, *added, swap=()):
    tokenizer = small_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in added])
    tokenizer.save_pretrained(folder)
    if swap:
        path = folder / "tokenizer.json"
        text = path.read_text("utf-8")
        for number, token in enumerate(swap):
            text = text.replace(f'"{token}":', f'"@{1 - number}":')
        path.write_text(text.replace('"@0":', f'"{swap[0]}":').replace('"@1":', f'"{swap[1]}":'), "utf-8")
    return folder


def test_tokens_that_only_one_side_has_added_are_no_difference(tmp_path):
    plain, more = saved(tmp_path / "plain"), saved(tmp_path / "more", "<tool>", "<think>")
    check_vocabularies(plain, more)
    check_vocabularies(more, plain)
    with pytest.raises(IncompatibleDraftError, match="differ in 2 tokens, first '<image>'"):
        check_vocabularies(more, saved(tmp_path / "another", "<image>"))


def test_other_ids_are_refused_with_the_ways_that_would_work(tmp_path):
    with pytest.raises(IncompatibleDraftError) as found:
        check_vocabularies(saved(tmp_path / "target"), saved(tmp_path / "draft", swap=("x", "y")))
    for part in (
        "differ in 2 tokens, first 'x'",
        "vocabulary: token_intersection",
        "vocabulary: string_match",
    ):
        assert part in str(found.value)
