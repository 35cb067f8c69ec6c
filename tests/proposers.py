"""Proposers that try the loop: knowing, lying, random and stubborn ones. And the law that each proposal is that of a
fresh cache."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch

from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.engine import loop
from draftrank.engine.proposer import Proposal, Proposer
from draftrank.engine.proposers.draft_model import ModelProposer
from draftrank.engine.sampling import Sampler
from draftrank.engine.verification import Verdict


class ScriptedProposer(Proposer):
    """Proposes the true continuation, each token corrupted with a given probability."""

    def __init__(self, output: Sequence[int], prompt_length: int, error_rate: float, seed: int = 0) -> None:
        self.output, self.prompt_length, self.error_rate = list(output), prompt_length, error_rate
        self.random = random.Random(seed)
        self.settled: list[int] = []
        self.asked: list[int] = []

    def begin(self, prompt, sampler, reserve):
        pass

    def propose(self, context, count):
        self.asked.append(count)
        start = len(context) - self.prompt_length
        length = self.random.randint(0, count) if self.error_rate else count
        true = (self.output + [4] * count)[start : start + length]
        lies = [3 + self.random.randrange(50) if self.random.random() < self.error_rate else t for t in true]
        return Proposal(lies, forwards=len(lies))

    def accept(self, tokens):
        self.settled.append(tokens)


class StaleProposer(ModelProposer):
    """Reads each context behind another last token than the one that stands; how many its cache holds is right."""

    def propose(self, context, count):
        held = self._draft.length
        self._draft.rollback(1)
        self._draft.forward([3 + (context[held - 1] + 17) % 58])
        return super().propose(context, count)


class Constant(Sampler):
    """All of its random numbers are the same one, so that a proposal depends on its context alone."""

    number = 0.37

    def uniforms(self, count):
        return torch.full((count,), self.number)


class Steps:
    """Decoding by hand, each step's fate drawn at random: some path of what was proposed stands, then any token."""

    def __init__(self, seed: int, vocabulary: int = 61) -> None:
        self.random = random.Random(seed)
        self.vocabulary = vocabulary

    def run(self, target, proposer, prompt, sampler, k: int, steps: int):
        """Contexts, how many tokens were asked for behind each, and what was proposed."""
        target.reset()
        target.reserve(RESERVE)
        target.forward(prompt, keep=1)
        proposer.begin(prompt, sampler, RESERVE)
        context = [*prompt, self.random.randrange(3, self.vocabulary)]
        found = []
        for _ in range(steps):
            count = self.random.randint(1, k)
            proposal = proposer.propose(list(context), count)
            found.append((tuple(context), count, proposal))
            path = self.path(proposal)
            following = {proposal.tokens[child] for child in proposal.children(path[-1] if path else -1)}
            last = self.random.choice([one for one in range(3, self.vocabulary) if one not in following])
            verdict = Verdict(len(path), last, None if proposal.parents is None else tuple(path))
            loop._verification(target, context[-1], proposal)
            target.commit(len(context) - 1, (0, *(place + 1 for place in loop._path(verdict))))
            accepted = [proposal.tokens[place] for place in path]
            proposer.accept(accepted)
            context += [*accepted, last]
        return found

    def path(self, proposal: Proposal) -> list[int]:
        place, found = -1, []
        while (children := list(proposal.children(place))) and self.random.random() < 0.7:
            place = self.random.choice(children)
            found.append(place)
        return found


RESERVE = 120


def fresh_proposal(target, proposer, context: Sequence[int], sampler, count: int) -> Proposal:
    """What is proposed where nothing but this context was ever read; `target` and `proposer` are used for this alone."""
    target.reset()
    target.reserve(RESERVE)
    target.forward(context[:-1], keep=1)
    proposer.begin(context[:-1], sampler, RESERVE)
    return proposer.propose(list(context), count)


class Asked(Sampler):
    """Draws a given chain, and remembers how probable the draft held each of its tokens."""

    trees = False

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__(DecodingMode(temperature=1.0))
        self.tokens, self.shares = tokens, []

    def probabilities(self, logits):
        row = logits.float().softmax(-1)
        self.shares.append(float(row[0, self.tokens[len(self.shares)]]))
        return torch.ones_like(row)

    def draw(self, probabilities):
        return self.tokens[len(self.shares) - 1]


def check_fresh(make, found, sampler, thresholds=(), tolerance: float = 1e-3) -> None:
    """The law: each proposal is that of a fresh cache.

    Where the two differ, the draft must be undecided: at each place where they part, what either proposed is as probable
    as something that the other proposed there, or as a threshold of the recipe, up to `tolerance` in relative terms.

    Args:
        make: opens a target and a proposer on it, which have read nothing.
        found: see `Steps.run`.
        sampler: the mode; its random numbers must all be alike.
        thresholds: of the recipe.
        tolerance: what the backend's rounding explains; 0 where it has none.
    """
    target, proposer = make()
    for number, (context, count, proposal) in enumerate(found):
        wanted = fresh_proposal(target, proposer, context, sampler, count)
        ours, theirs = paths(proposal), paths(wanted)
        if proposal.probabilities is not None:
            check_drawn(proposal, wanted, sampler)
        elif list(ours) != list(theirs):
            where = f"step {number}, behind {len(context)} tokens: {list(ours)} instead of {list(theirs)}"
            assert tolerance, where
            assert proposal.forwards, where
            assert wanted.forwards, where  # copies know no ties
            assert is_tie(target, proposer, context, ours, theirs, thresholds, tolerance), where


def paths(proposal: Proposal) -> dict[tuple[int, ...], None]:
    """The proposed tokens in their order, each with those before it."""
    found: list[tuple[int, ...]] = []
    for place, token in enumerate(proposal.tokens):
        parent = place - 1 if proposal.parents is None else proposal.parents[place]
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return dict.fromkeys(found)


def is_tie(target, proposer, context, ours, theirs, thresholds, tolerance) -> bool:
    def weights(path):
        asked = Asked(path)
        fresh_proposal(target, proposer, context, asked, len(path))
        return math.prod(asked.shares), asked.shares[-1]

    if set(ours) == set(theirs):  # in another order
        ranks = [[weights(one)[0] for one in side] for side in (ours, theirs)]
        return all(math.isclose(a, b, rel_tol=tolerance) for a, b in zip(*ranks, strict=True))
    for side, other in ((ours, theirs), (theirs, ours)):
        parting = [one for one in side if one not in other and (len(one) == 1 or one[:-1] in other)]
        for one in parting:
            equals = [weights(rival)[0] for rival in other if rival not in side] + list(thresholds)
            looked_at = [*weights(one), *(weights(one[:-1]) if len(one) > 1 else ())]
            if not any(math.isclose(a, b, rel_tol=tolerance) for a in looked_at for b in equals):
                return False
    return True


def check_drawn(proposal: Proposal, wanted: Proposal, sampler) -> None:
    """Drawn from the same distributions, up to the first token that a number on the edge made another one."""
    number = float(sampler.uniforms(1))
    for place, (token, other) in enumerate(zip(proposal.tokens, wanted.tokens, strict=False)):
        row = wanted.probabilities[place]
        torch.testing.assert_close(proposal.probabilities[place], row, atol=1e-4, rtol=1e-3)
        if token != other:
            edges = row.cumsum(-1, dtype=torch.float64)
            assert (edges - number * edges[-1]).abs().min() < 1e-3
            return
    assert len(proposal.tokens) == len(wanted.tokens)
