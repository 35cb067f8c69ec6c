"""The law of whole outputs, exactly: every branch of every random choice of the loop is followed."""

from __future__ import annotations

from collections import defaultdict
from itertools import product

import pytest
import torch

from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.engine import loop, verification
from draftrank.engine.backends.base import Capabilities, Runtime
from draftrank.engine.sampling import Sampler

VOCABULARY = 3
LENGTH = 3
MODE = DecodingMode(temperature=1.0)


class TableRuntime(Runtime):
    """A model whose logits depend on the last two tokens only."""

    name = "table"
    context_window = 64
    capabilities = Capabilities(trees=True)

    def __init__(self, seed: int, vocabulary: int = VOCABULARY) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.vocabulary_size = vocabulary
        self.table = 2 * torch.randn(vocabulary, vocabulary, vocabulary, generator=generator)
        self.tokens: list[int] = []

    @property
    def length(self):
        return len(self.tokens)

    def forward(self, tokens, keep=None, tree=None):
        rows = []
        root = len(self.tokens) if tree is None else len(self.tokens) + len(tokens) - len(tree.parents)
        for token in tokens:
            place = len(self.tokens)
            before = place - 1 if tree is None else root + tree.parents[place - root]
            rows.append(self.table[self.tokens[before] if place else 0, token])
            self.tokens.append(token)
        return torch.stack(rows)[-(keep or len(tokens)) :]

    def commit(self, root, path):
        self.tokens[root:] = [self.tokens[root + place] for place in path]

    def rollback(self, count):
        del self.tokens[len(self.tokens) - count :]

    def reset(self):
        self.tokens = []

    def reserve(self, tokens):
        pass

    def synchronize(self):
        pass


class Choices:
    """Replays a path of choices, then takes the first way at each new one; knows what it left out."""

    def __init__(self) -> None:
        self.path: list[tuple[int, list[float]]] = []
        self.at = 0

    def choose(self, probabilities: list[float]) -> int:
        if self.at == len(self.path):
            self.path.append((next(i for i, p in enumerate(probabilities) if p > 0), probabilities))
        chosen, _ = self.path[self.at]
        self.at += 1
        return chosen

    @property
    def probability(self) -> float:
        found = 1.0
        for chosen, probabilities in self.path:
            found *= probabilities[chosen]
        return found

    def advance(self) -> bool:
        """Turns to the next path; False when all have been followed."""
        while self.path:
            chosen, probabilities = self.path.pop()
            later = [i for i in range(chosen + 1, len(probabilities)) if probabilities[i] > 0]
            if later:
                self.path.append((later[0], probabilities))
                self.at = 0
                return True
        return False


class Following(Sampler):
    """Draws by following choices."""

    def __init__(self, mode: DecodingMode, choices: Choices) -> None:
        super().__init__(mode)
        self.choices = choices

    def draw(self, probabilities):
        return self.choices.choose((probabilities.double() / probabilities.double().sum()).tolist())


def law(target, proposer, k, length=LENGTH):
    """Probability of every output of the speculative loop."""
    choices, found = Choices(), defaultdict(float)

    def following(p, q, proposed, _):
        """What `coupled` does, each outcome followed with its probability."""
        found = []
        for row, token in enumerate(proposed.tolist()):
            likely = min(1.0, float(p[row, token] / q[row, token]))
            if not choices.choose([1 - likely, likely]):
                left = (p[row] - q[row]).clamp(min=0.0).double()
                found.append(choices.choose((left / left.sum()).tolist()))
                return torch.tensor(found)
            found.append(token)
        return torch.tensor([*found, choices.choose(p[-1].double().tolist())])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Sampler", lambda mode, _: Following(mode, choices))
        patch.setattr(verification, "coupled", following)
        while True:
            request = loop.Request((1, 2), length, mode=MODE)
            output = loop.speculative(target, proposer, request, k).token_ids
            found[output] += choices.probability
            if not choices.advance():
                return found


def own_law(target, length=LENGTH):
    """Probability of every output of the target alone."""
    found = {}
    for output in product(range(target.vocabulary_size), repeat=length):
        target.reset()
        logits = target.forward((1, 2, *output[:-1]), keep=length)
        shares = torch.softmax(logits.double(), dim=-1)
        found[output] = float(torch.prod(shares[range(length), list(output)]))
    return found
