"""What is known of a model that a search has looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from draftrank.workflows.search.choice import MAX_COPIED_TOKENS, RUNGS, Begun, Choice
from draftrank.workflows.search.predicted_speedup import Prediction


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
        """Its name and predicted speedup."""
        what = (
            "could not be built" if self.prediction is None else f"predicted {self.prediction.speedup:.2f}×"
        )
        return f"{self.choice.id} {what}"

    @classmethod
    def read(cls, fields: dict[str, Any]) -> Tried:
        """From what `asdict` made of it."""
        promised, chosen = fields["prediction"], fields["choice"]
        choice = Begun(**chosen) if "recipe" in chosen else Choice(**chosen)
        return cls(**fields | {"choice": choice, "prediction": Prediction(**promised) if promised else None})


def by_prediction(tried: list[Tried]) -> list[Tried]:
    """What could be built, the most promising first; of two the one that was trained for longer."""
    able = [one for one in tried if one.prediction is not None]
    return sorted(
        able, key=lambda one: (-min(one.rung, RUNGS), -one.prediction.speedup if one.prediction else 0.0)
    )
