"""Draft models with another tokenizer than the target's leave the output as it is."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.engine.backends.base import Capabilities
from draftrank.engine.backends.transformers.runtime import TransformersRuntime
from draftrank.engine.loop import Request, autoregressive, speculative
from draftrank.engine.proposers.cascade import CascadeProposer
from draftrank.engine.proposers.drafting import PLAIN, Drafting
from draftrank.engine.proposers.ngram import NgramProposer
from draftrank.engine.proposers.other_vocabulary import StringMatchProposer, TokenIntersectionProposer
from draftrank.models.token_bytes import TokenBytes, whole_text
from draftrank.models.translation import Translation
from draftrank.models.vocabulary import SharedTokens
from draftrank.models.vocabulary_rows import know_only
from exact_law import TableRuntime, law, own_law
from examples import examples
from models import small_model
from proposers import Constant, Steps, check_fresh
from vocabularies import TEXTS, byte_level, tokenizers_of_all_kinds

KINDS = {name: TokenBytes(tokenizer) for name, tokenizer in tokenizers_of_all_kinds().items()}
PAIRS = [
    ("pieces", "bytes"),
    ("bytes", "pieces"),
    ("bytes", "other bytes"),
    ("pieces that lead with a space", "bytes"),
    ("other bytes", "pieces that lead with a space"),
    ("pieces without bytes", "bytes"),
    ("bytes", "pieces without bytes"),
]
WAYS = {
    "token_intersection": ("token_intersection", PLAIN),
    "token_intersection, hesitant": ("token_intersection", Drafting(0.1)),
    "token_intersection, tree": ("token_intersection", Drafting(None, 0.02)),
    "string_match": ("string_match", PLAIN),
    "string_match, hesitant": ("string_match", Drafting(0.1)),
}


def proposer_of(way, target, draft, rows, runtime, drafting=PLAIN):
    """A proposer as a session opens it, of a runtime whose head knows all tokens.

    Args:
        way: the recipe's `vocabulary`.
        target: bytes of its tokens.
        draft: the same.
        rows: of the target.
        runtime: of the draft.
        drafting: how far and how wide.
    """
    translation = Translation(target, draft)
    if way == "string_match":
        return StringMatchProposer(runtime, translation, drafting)
    shared = SharedTokens.of(target, draft)
    if isinstance(runtime, TransformersRuntime):
        know_only(runtime.model, sorted(shared.to_draft.values()))
    return TokenIntersectionProposer(runtime, translation, drafting, shared, rows)


def rows_of(tokens):
    return max([*tokens.of_token, *tokens.special]) + 4  # padded, as most models' are


def random_model(tokens, seed, window=256):
    return TransformersRuntime(
        small_model("llama", seed=seed, layers=1, vocabulary=rows_of(tokens), window=window)
    )


class Script(TableRuntime):
    """A model that goes on with a text as its own tokenizer splits it, and knows nothing behind any other beginning."""

    capabilities = Capabilities()
    context_window = 4096

    def __init__(self, tokens, text):
        self.text_of = lambda read: tokens.of(read).lstrip(b" ")  # some put a space before every text
        self.script = [*tokens.encode(text), next(iter(tokens.special))]
        self.places = {self.text_of(self.script[:place]): place for place in range(len(self.script))}
        self.vocabulary_size = rows_of(tokens)
        self.tokens = []

    def forward(self, tokens, keep=None, tree=None):
        rows = []
        for token in tokens:
            self.tokens.append(token)
            logits = torch.zeros(self.vocabulary_size)
            place = self.places.get(self.text_of(self.tokens))
            if place is not None:
                logits[self.script[place]] = 9.0
            rows.append(logits)
        return torch.stack(rows)[-(keep or len(tokens)) :]


@examples(20)
@given(
    way=st.sampled_from(sorted(WAYS)),
    pair=st.sampled_from(PAIRS),
    seed=st.integers(0, 99),
    text=TEXTS,
    special=st.booleans(),
)
def test_greedy_output_is_the_targets_own(way, pair, seed, text, special):
    """Random models say anything: bytes that are no text, special tokens, rows beyond the vocabulary."""
    target, draft = (KINDS[kind] for kind in pair)
    runtime = random_model(target, seed)
    vocabulary, drafting = WAYS[way]
    proposer = proposer_of(
        vocabulary, target, draft, runtime.vocabulary_size, random_model(draft, seed + 1), drafting
    )
    first, *_, last = target.special
    prompt = (first, *target.encode(text), *((last, first) if special else ()), *target.encode("a"))
    request = Request(prompt, 16)
    assert speculative(runtime, proposer, request, 3).token_ids == autoregressive(runtime, request).token_ids


@pytest.mark.parametrize(("way", "ours", "theirs"), [(way, *PAIRS[i]) for i, way in enumerate(WAYS)])
def test_each_proposal_is_that_of_a_draft_that_reads_the_context_anew(way, ours, theirs):
    target, draft = KINDS[ours], KINDS[theirs]
    rows, sampler = rows_of(target), Constant(DecodingMode())
    vocabulary, drafting = WAYS[way]

    def make():
        return random_model(target, 1), proposer_of(
            vocabulary, target, draft, rows, random_model(draft, 2), drafting
        )

    steps = Steps(7, max(target.of_token))
    found = steps.run(*make(), [*target.encode("ab ca")], sampler, k=4, steps=12)
    check_fresh(make, found, sampler, thresholds=(0.1, 0.02))


LINES = "abab ca.\n\ncaba é ab\nba 你 abc 🙂.\n ab"


@pytest.mark.parametrize("way", ["token_intersection", "string_match"])
@pytest.mark.parametrize(("ours", "theirs"), [pair for pair in PAIRS if "without" not in " ".join(pair)])
@pytest.mark.parametrize("k", [2, 7])
def test_a_draft_that_knows_the_text_is_right(way, ours, theirs, k):
    """Every text that the two tokenizers split alike is accepted; with string match, so is nearly all of the others."""
    target, draft = KINDS[ours], KINDS[theirs]
    runtime = Script(target, LINES)
    proposer = proposer_of(way, target, draft, runtime.vocabulary_size, Script(draft, LINES))
    prompt, output = runtime.script[:2], runtime.script[2:]
    request = Request(tuple(prompt), len(output), frozenset(output[-1:]))
    found = speculative(runtime, proposer, request, k)
    assert found.token_ids == tuple(output)
    known = proposer.known()
    if way == "string_match":
        assert found.steps <= 0.75 * (len(output) - 1)
    else:
        assert found.steps < len(output) - 1
        assert all(token in known for _, one in found.proposals for token in one.tokens)


@pytest.mark.parametrize(("merges", "accepted"), [((("a", "b"),), (0, 1, 1)), ((), (1, 2, 3))])
def test_a_token_that_the_draft_writes_in_two_takes_two_forwards(merges, accepted):
    """So of k tokens of the draft none may be a whole one of the target, however right they are."""
    target, draft = TokenBytes(byte_level(merges)), TokenBytes(byte_level(()))
    text = "ab" * 13
    for k, each in zip((1, 2, 3), accepted, strict=True):
        runtime = Script(target, text)
        proposer = proposer_of("string_match", target, draft, runtime.vocabulary_size, Script(draft, text))
        prompt, output = runtime.script[:1], runtime.script[1:-1]
        found = speculative(runtime, proposer, Request(tuple(prompt), len(output)), k)
        assert found.token_ids == tuple(output)
        assert found.steps == -(-(len(output) - 1) // (each + 1))


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@given(context=TEXTS, text=TEXTS, cut=st.integers(0, 4))
@examples(25)
def test_what_the_draft_says_is_proposed_as_it_is(ours, theirs, context, text, cut):
    """The bytes of the proposal are those of the draft's text, whatever stands at the seam, and none is of half a
    character that the draft may still end."""
    target, draft = KINDS[ours], KINDS[theirs]
    read = target.encode(context)
    read = read[: max(0, len(read) - cut)]  # may end within a character
    drafted = draft.encode(text)
    found = Translation(target, draft).said(read, drafted)
    said = draft.of(drafted)
    assert said.startswith(target.of(found))
    if found:
        assert whole_text(target.of(read) + target.of(found))[1] == b""
    if not cut and said.decode(errors="ignore").encode() == said and "without" not in ours:
        assert target.of(found) == said


@given(context=TEXTS, cut=st.integers(0, 4))
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@examples(25)
def test_the_draft_reads_the_bytes_of_the_context(ours, theirs, context, cut):
    target, draft = KINDS[ours], KINDS[theirs]
    read = target.encode(context)
    read = read[: max(0, len(read) - cut)]
    found = Translation(target, draft).read(read)
    if found and "without" not in theirs and read:
        data, lead = draft.of(found), draft.leads_with_space and target.of(read)[:1] not in (b"",)
        assert data.removeprefix(b" " if lead else b"") == target.of(read) or data == target.of(read)


def test_special_tokens_of_the_target_are_read_in_print_and_its_beginning_as_the_drafts_own():
    target, draft = KINDS["pieces"], KINDS["bytes"]
    named = {text: token for token, text in target.special.items()}
    translation = Translation(target, draft)
    context = [named["<bos>"], *target.encode("ab"), named["<end_of_turn>"], *target.encode("\na")]
    assert draft.of(translation.read(context)) == b"ab<end_of_turn>\na"
    assert translation.read([named["<bos>"]]) == [draft.first()]
    both = TokenBytes(byte_level(special=("<s>", "<end_of_turn>")))
    assert Translation(target, both).read(context).count(1) == 1  # its own token of this form


def test_a_drafts_special_token_ends_its_text():
    target, draft = KINDS["pieces"], KINDS["bytes"]
    end = next(iter(draft.special))
    drafted = [*draft.encode("ab"), end, *draft.encode("ca")]
    found = Translation(target, draft).said(target.encode("c"), drafted)
    assert target.of(found) == b"ab"
    assert Translation(target, draft).said(target.encode("c"), [end]) == []


def test_a_token_that_would_join_context_and_proposal_is_split_at_the_seam():
    """`a` stands, and `ab` is one token of the target: `b` is proposed."""
    target, draft = KINDS["bytes"], KINDS["pieces"]
    assert target.encode("ab") == [target.by_bytes[b"ab"]]
    found = Translation(target, draft).said(target.encode("a"), draft.encode("b"))
    assert found == [target.by_bytes[b"b"]]
    # behind a context whose tokens are what the tokenizer writes, the text is split as in the whole
    whole = target.encode("ca ab")
    assert Translation(target, draft).said(target.encode("ca"), draft.encode(" ab")) == whole[-2:]


def test_half_a_character_is_held_back_until_it_is_whole():
    target, draft = KINDS["pieces"], KINDS["bytes"]
    parts = draft.encode("a你")
    assert target.of(Translation(target, draft).said([], parts[:-1])) == b"a"
    assert target.of(Translation(target, draft).said([], parts)) == "a你".encode()
    begun = target.encode("a你")[:-1]  # the target itself has written two bytes of three
    assert target.of(Translation(target, draft).said(begun, parts[-1:])) == "你".encode()[-1:]


LETTERS = {"target": byte_level((("a", "b"),), (), "ab"), "draft": byte_level((("b", "a"),), (), "bac")}
TINY = {name: TokenBytes(tokenizer) for name, tokenizer in LETTERS.items()}


@pytest.mark.parametrize("way", ["token_intersection", "string_match", "string_match, drawn"])
@examples(5)
@given(seeds=st.tuples(st.integers(0, 99), st.integers(100, 199)), threshold=st.sampled_from([None, 0.4]))
def test_the_law_of_sampled_outputs_is_the_targets_exactly(way, seeds, threshold):
    """Of every branch of every random choice. The target's tokens are a, b and ab, the draft's b, a, c and ba. A text that is
    drawn at random is judged like a certain one, without loss."""
    target = TableRuntime(seeds[0], len(TINY["target"].of_token))
    draft = TableRuntime(seeds[1], len(TINY["draft"].of_token))
    vocabulary = way.partition(",")[0]
    proposer = proposer_of(
        vocabulary, TINY["target"], TINY["draft"], target.vocabulary_size, draft, Drafting(threshold)
    )
    if "drawn" in way:
        begin = proposer.begin

        def begin_drawing(prompt, sampler, reserve):
            begin(prompt, sampler, reserve)
            proposer._most_likely = sampler

        proposer.begin = begin_drawing
    found, expected = law(target, proposer, 2), own_law(target)
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-5)
    for output, probability in expected.items():
        assert found[output] == pytest.approx(probability, abs=1e-5)


@pytest.mark.parametrize("way", ["token_intersection", "string_match"])
def test_the_law_is_told_apart_from_that_of_a_proposer_with_wrong_probabilities(way, monkeypatch):
    """So that the test above can fail: a proposal that claims another distribution than it was drawn from."""
    target, draft = TableRuntime(3, 3), TableRuntime(104, 4)
    proposer = proposer_of(way, TINY["target"], TINY["draft"], 3, draft)
    propose = proposer.propose

    def lying(context, count):
        found = propose(context, count)
        claimed = torch.full((len(found.tokens), 3), 1 / 3)
        return type(found)(found.tokens, claimed, found.forwards)

    monkeypatch.setattr(proposer, "propose", lying)
    found, expected = law(target, proposer, 2), own_law(target)
    assert max(abs(found[output] - share) for output, share in expected.items()) > 1e-3


@pytest.mark.parametrize("way", ["token_intersection", "string_match"])
def test_nothing_is_proposed_behind_the_drafts_window(way):
    target, draft = KINDS["pieces"], KINDS["bytes"]
    runtime = random_model(target, 4)
    proposer = proposer_of(way, target, draft, runtime.vocabulary_size, random_model(draft, 5, window=16))
    prompt = tuple(target.encode("a b" * 4))
    request = Request(prompt, 20)
    found = speculative(runtime, proposer, request, 3)
    assert found.token_ids == autoregressive(runtime, request).token_ids
    lengths = [
        len(Translation(target, draft).read([*prompt, *found.token_ids[:stood]]))
        for stood, _ in found.proposals
    ]
    asked = [proposal.forwards for _, proposal in found.proposals]
    assert min(lengths) <= 16 < max(lengths)
    assert all(not forwards for length, forwards in zip(lengths, asked, strict=True) if length > 16)
    assert all(forwards for length, forwards in zip(lengths[:-1], asked, strict=False) if length <= 16)


def test_a_cascade_copies_first_and_translates_elsewhere():
    target, draft = KINDS["pieces"], KINDS["bytes"]
    runtime = random_model(target, 6)
    model = proposer_of("string_match", target, draft, runtime.vocabulary_size, random_model(draft, 7))
    proposer = CascadeProposer(NgramProposer(1, 3), model)
    request = Request(tuple(target.encode("ab ab ca ab")), 24)
    found = speculative(runtime, proposer, request, 3)
    assert found.token_ids == autoregressive(runtime, request).token_ids
    assert proposer.known() == model.known()


@pytest.mark.parametrize("way", ["token_intersection", "string_match"])
def test_sampled_output_is_repeatable_and_counts_agree(way):
    target, draft = KINDS["bytes"], KINDS["pieces"]
    runtime = random_model(target, 8)
    proposer = proposer_of(way, target, draft, runtime.vocabulary_size, random_model(draft, 9))
    request = Request(tuple(target.encode("abca")), 20, mode=DecodingMode(temperature=0.9, top_p=0.9, seed=3))
    one, again = (speculative(runtime, proposer, request, 3) for _ in range(2))
    assert one.token_ids == again.token_ids
    assert len(one.token_ids) - 1 == sum(
        steps * (1 + accepted) for accepted, steps in enumerate(one.accept_histogram)
    )


def test_what_can_be_proposed_is_counted_in_the_targets_tokens():
    target, draft = KINDS["pieces"], KINDS["bytes"]
    rows = rows_of(target)
    shared = proposer_of("token_intersection", target, draft, rows, random_model(draft, 1)).known()
    spoken = proposer_of("string_match", target, draft, rows, random_model(draft, 1)).known()
    assert shared < spoken == frozenset(target.of_token)
    assert target.by_bytes[b"ab"] in shared
    assert target.by_bytes[b"b "] not in shared


def test_prompts_of_any_tokens_are_read():
    """Also such as no text gives, one behind the other at random."""
    drawn = random.Random(0)
    for ours, theirs in PAIRS:
        target, draft = KINDS[ours], KINDS[theirs]
        runtime = random_model(target, 10)
        every = [*target.of_token, *target.special]
        for way in ("token_intersection", "string_match"):
            proposer = proposer_of(way, target, draft, runtime.vocabulary_size, random_model(draft, 11))
            request = Request(tuple(drawn.choices(every, k=9)), 6)
            found = speculative(runtime, proposer, request, 4)
            assert found.token_ids == autoregressive(runtime, request).token_ids
