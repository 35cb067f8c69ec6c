"""What suffix drafts propose, against a search through the whole context."""

from __future__ import annotations

import json
import math
from fractions import Fraction

from hypothesis import assume, example, given
from hypothesis import strategies as st

from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.engine.proposers.cascade import CascadeDraft
from draftrank.engine.proposers.ngram import NgramProposer
from draftrank.engine.proposers.suffix import SuffixProposer
from draftrank.engine.sampling import Sampler
from examples import examples

texts = st.lists(st.integers(0, 2), min_size=2, max_size=40)


def proposed(context, count, **knobs):
    proposer = SuffixProposer(**knobs)
    proposer.begin(context[: len(context) // 2], None, 0)
    return proposer.propose(context, count).tokens


def agreeing_places(context, suffix):
    """Where the suffix has ended before."""
    size = len(suffix)
    return [
        end for end in range(size, len(context)) if context[end - size : end] == suffix and end < len(context)
    ]


def expected_accepted(context, ends, path):
    """The sum over the path's tokens of the share of places that agree until there."""
    total, share = Fraction(0), Fraction(1)
    for place, token in enumerate(path):
        voters = [end for end in ends if context[end : end + place] == path[:place]]
        voters = [end for end in voters if end + place < len(context)]
        share *= Fraction(sum(context[end + place] == token for end in voters), len(voters))
        total += share
    return total, share


@examples(150)
@given(context=texts, count=st.integers(1, 8), least=st.sampled_from([0.0, 0.3, 0.6]))
@example(context=[0, 1, 0, 2, 0, 1, 0], count=3, least=0.0)
def test_the_path_is_the_best_of_every_length_of_match(context, count, least):
    """The same choice by brute force: every suffix, every place, the majority's path."""
    found = proposed(context, count, min_match=1, max_match=40, tokens_per_match=2.0, min_probability=least)
    scores = {}
    for size in range(1, len(context)):
        suffix = context[-size:]
        ends = agreeing_places(context, suffix)
        path: list[int] = []
        while len(path) < min(count, math.ceil(2.0 * size)):
            votes = {}
            for end in ends:
                if context[end : end + len(path)] == path and end + len(path) < len(context):
                    votes.setdefault(context[end + len(path)], []).append(end)
            if not votes:
                break
            token = max(votes, key=lambda one: (len(votes[one]), max(votes[one])))
            if expected_accepted(context, ends, [*path, token])[1] < least:
                break
            path.append(token)
        scores[size] = (expected_accepted(context, ends, path)[0], path)
    best = max((score for score, _ in scores.values()), default=Fraction(0))
    if best == 0:
        assert found == []
    else:
        assert found in [path for score, path in scores.values() if math.isclose(score, best)]


@examples(60)
@given(head=texts, count=st.integers(1, 6))
def test_where_one_place_alone_agrees_it_copies_like_n_grams(head, count):
    """A run of tokens that stands nowhere else before."""
    context = [*head, 7, 8, 9, *head, 7, 8]
    found = proposed(context, count, min_match=2, max_match=64, tokens_per_match=64.0, min_probability=0.0)
    ngram = NgramProposer(2, 2)
    ngram.begin(context, None, 0)
    assert found == ngram.propose(context, count).tokens


def test_the_majority_is_followed_as_far_as_it_can_be_trusted():
    often, once = [5, 6, 1, 2], [5, 6, 3, 4]
    context = [*often, 0, *once, 9, *often, 8, *once, 7, *often, 5, 6]
    knobs = {"min_match": 2, "max_match": 2, "tokens_per_match": 4.0}
    assert proposed(context, 8, **knobs, min_probability=0.5)[:2] == [1, 2]
    # three of five places agree on the first token, one of those three on the third
    assert len(proposed(context, 8, **knobs, min_probability=0.5)) == 2
    assert len(proposed(context, 8, **knobs, min_probability=0.1)) > 2
    assert proposed(context, 8, **knobs, min_probability=0.7) == []


def test_a_longer_match_is_trusted_for_more_tokens():
    context = [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 3, 4, 5]
    for trust, length in ((0.3, 1), (1.0, 3), (2.0, 6)):
        assert len(proposed(context, 9, min_match=1, tokens_per_match=trust)) == length


def probabilities_behind(context, trust):
    """By brute force, of everything that stood behind an earlier place: its share of the votes there, less the more might be
    new, times that of all before it."""
    votes = {}
    for end in range(1, len(context)):
        size = 0
        while size < end and context[end - 1 - size] == context[-1 - size]:
            size += 1
        if size:
            votes[end] = size
    found = {}
    for end, size in votes.items():
        for length in range(1, math.ceil(trust * size) + 1):
            path = tuple(context[end : end + length])
            if len(path) == length:
                found.setdefault(path, []).append((end, size))
    shares = {}
    for path in sorted(found, key=len):
        before = found[path[:-1]] if len(path) > 1 else list(votes.items())
        share = Fraction(sum(size for _, size in found[path]), sum(size for _, size in before))
        agreed = max(size for _, size in found[path]) + len(path) - 1 + len(found[path]) - 1
        share *= Fraction(agreed, agreed + 2)
        shares[path] = share * shares.get(path[:-1], 1)
    return shares


@examples(150)
@given(
    context=texts,
    count=st.integers(1, 9),
    above=st.sampled_from([0.01, 0.1, 0.3]),
    trust=st.sampled_from([0.5, 1.0, 64.0]),
)
def test_a_tree_holds_the_most_probable_tokens(context, count, above, trust):
    proposer = SuffixProposer(1, 40, trust, branch_above=above)
    proposer.begin(context[: len(context) // 2], Sampler(DecodingMode()), 0)
    found = proposer.propose(context, count)
    parents = found.parents or tuple(range(-1, len(found.tokens) - 1))
    paths = []
    for place, parent in enumerate(parents):
        assert parent < place
        paths.append((*(paths[parent] if parent >= 0 else ()), found.tokens[place]))
    shares = probabilities_behind(context, trust)
    assume(not any(math.isclose(share, above) for share in shares.values()))  # rounding decides on the edge
    likely = sorted((share for share in shares.values() if share >= above), reverse=True)
    assert len(set(paths)) == len(paths)
    assert sorted((shares[path] for path in paths), reverse=True) == likely[:count]


def test_a_tree_that_one_long_match_speaks_for_goes_on_further():
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    lengths = []
    for matched in (1, 2, 4):
        proposer = SuffixProposer(1, 40, 64.0, branch_above=0.1)
        context = [*text, 0, *text[:matched]]
        proposer.begin(context, Sampler(DecodingMode()), 0)
        lengths.append(len(proposer.propose(context, 30).tokens))
    assert lengths == sorted(set(lengths))


def test_when_sampling_the_same_tree_is_proposed():
    context = [1, 2, 3, 1, 2, 4, 1, 2, 3, 1, 2]
    proposer = SuffixProposer(1, 8, 2.0, branch_above=0.05)
    proposer.begin(context, Sampler(DecodingMode()), 0)
    tree = proposer.propose(context, 8)
    assert tree.parents is not None
    proposer.begin(context, Sampler(DecodingMode(temperature=1.0)), 0)
    assert proposer.propose(context, 8) == tree


def test_a_mixed_draft_copies_by_votes_where_its_recipe_says_how_many_must_agree():
    fields = {"kind": "cascade", "steps": [{"kind": "drop_layers", "keep": 2, "select": "ends"}]}
    plain = CascadeDraft.model_validate_json(json.dumps(fields))
    voting = CascadeDraft.model_validate_json(json.dumps({**fields, "min_probability": 0.4}))
    assert "n-gram" in plain.techniques
    assert "suffix" in voting.techniques
    assert "while 40% of the matches agree" in voting.sentence()
    assert "matches agree" not in plain.sentence()


def test_another_sequence_remembers_nothing_of_the_one_before():
    proposer = SuffixProposer()
    proposer.begin([1, 2, 3, 1, 2], None, 0)
    assert proposer.propose([1, 2, 3, 1, 2], 4).tokens == [3, 1]
    proposer.begin([5, 1, 2], None, 0)
    assert proposer.propose([5, 1, 2], 4).tokens == []
