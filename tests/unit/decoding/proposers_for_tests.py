"""Proposers that try the loop: knowing, lying, random and stubborn ones."""

from __future__ import annotations

import random
from collections.abc import Sequence

from draftrank.decoding.proposer import Proposal


class ScriptedProposer:
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

    def settle(self, accepted):
        self.settled.append(accepted)

    def runtime(self):
        return None
