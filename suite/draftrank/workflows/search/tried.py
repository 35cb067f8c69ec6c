"""The state of one model of a search, and its speedup as it is predicted before it is measured.

With a_i the share of texts on which the i-th token ahead agrees, given that those before did, a chain of k tokens
gives 1 + Σ_j Π_{i≤j} a_i tokens per step, for k forwards of the draft and one of the target over k+1 tokens (Leviathan
et al. 2022, arXiv:2211.17192, with an acceptance of its own for each place). Agreement is taken on answers kept aside
from training, by teacher forcing: it costs one forward and no decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from draftrank.measure.cost.forward_times import ForwardTimes
from draftrank.workflows.search.choice import MAX_COPIED_TOKENS, RUNGS, Begun, Choice

DEAR = 1.5
"""Copied tokens are given up beyond what this many single forwards verify: some of them stand nearly always, all of them
rarely."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The predicted speedup at the best k."""

    speedup: float
    k: int
    """The k that gives it."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One model, as far as it was trained."""

    choice: Choice | Begun
    rung: int
    """How far, from 1 on; 0 when nothing could be built."""
    prediction: Prediction | None
    """None when nothing could be built."""
    agreement: float | None
    """Share of tokens on text kept aside that it and the target agree on."""
    cost: float | None
    """One of its forwards in forwards of the target."""
    seconds: float
    """To build it, all rungs together."""
    last_s: float = 0.0
    """Those of the last rung."""
    copied: int = MAX_COPIED_TOKENS
    """How many copied tokens are worth verifying, by its look at the target."""
    note: str = ""
    """Why it ended: given up, or what went wrong."""
    agreement_before: float | None = None
    """As `agreement`, on the same text, before the last training."""

    def in_words(self) -> str:
        """Its name and its predicted speedup."""
        what = (
            "could not be built"
            if self.prediction is None
            else f"predicted speedup {self.prediction.speedup:.2f}×"
        )
        return f"{self.choice.id} {what}"

    @classmethod
    def read(cls, fields: dict[str, Any]) -> Tried:
        """From what `asdict` made of it."""
        predicted, chosen = fields["prediction"], fields["choice"]
        choice = Begun(**chosen) if "recipe" in chosen else Choice(**chosen)
        return cls(
            **fields | {"choice": choice, "prediction": Prediction(**predicted) if predicted else None}
        )


def by_predicted_speedup(tried: list[Tried]) -> list[Tried]:
    """The models that could be built, by length of training and then by predicted speedup, highest first."""
    able = [one for one in tried if one.prediction is not None]
    return sorted(
        able, key=lambda one: (-min(one.rung, RUNGS), -one.prediction.speedup if one.prediction else 0.0)
    )


def most_copied(times: ForwardTimes, context: int, least: int, most: int) -> int:
    """How many copied tokens are worth a place in a verification, from `least` to `most`."""
    allowed = DEAR * times.target_s(1, context)
    worth = [count for count in range(least, most + 1) if times.target_s(count + 1, context) <= allowed]
    return max(worth, default=least)


def predict_speedup(agreements: Sequence[float], times: ForwardTimes, context: int, most: int) -> Prediction:
    """The expected speedup at the best k.

    Args:
        agreements: for the first, second, … token ahead; further ones agree as often as the last.
        times: of the draft's forwards and the target's.
        context: tokens held, for which the times are taken.
        most: largest k.
    """
    best = Prediction(0.0, 1)
    tokens, likely = 1.0, 1.0
    for k in range(1, most + 1):
        likely *= agreements[min(k, len(agreements)) - 1]
        tokens += likely
        step_s = k * times.draft_s(1, context) + times.target_s(k + 1, context)
        speedup = tokens * times.target_s(1, context) / step_s
        if speedup > best.speedup:
            best = Prediction(speedup, k)
    return best
