"""Whether a draft left the target's output alone: token ids against the baseline's.

Greedy decoding has one right output, so each trial is compared with the baseline's trial of the same
cell. In fp32 any difference is a break. In bf16 and fp16 rounding depends on how many positions a
forward holds, so an honest draft may differ where the target's two best tokens are all but equal: such
differences are counted and placed here, and stay unjudged. Whoever judges them needs no more than
`Fidelity.divergences`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.measure.records import Trial
from draftrank.measure.statistics import pair_trials

Status = Literal["identical", "differs", "not compared"]


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where one output first left the baseline's."""

    task: str
    prompt: str
    turn: int
    repeat: int
    index: int
    """Index of the first emitted token that differs; the shorter output's length if one is a prefix."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Outputs of one arm against the baseline's."""

    status: Status
    """`not compared` in sampling modes, whose outputs differ rightly, and without common cells."""
    compared: int
    """Outputs compared."""
    divergences: tuple[Divergence, ...]
    """One for each output that differs, in the order of task, prompt, turn and repeat."""

    @property
    def differing(self) -> int:
        """How many outputs differ."""
        return len(self.divergences)

    @property
    def exact_match(self) -> float | None:
        """Share of outputs that are identical; None where nothing was compared."""
        return 1 - self.differing / self.compared if self.compared else None

    @property
    def earliest(self) -> Divergence | None:
        """The difference at the lowest index; the first of several."""
        return min(self.divergences, key=lambda divergence: divergence.index, default=None)


NOT_COMPARED = Fidelity("not compared", 0, ())


def compare_outputs(baseline: Iterable[Trial], other: Iterable[Trial], mode: DecodingMode) -> Fidelity:
    """Compares the emitted tokens of every cell that both arms have."""
    if not mode.greedy:
        return NOT_COMPARED
    pairs = pair_trials(baseline, other)
    if not pairs:
        return NOT_COMPARED
    found = tuple(
        Divergence(trial.task, trial.prompt, trial.turn, trial.repeat, index)
        for reference, trial in pairs
        if (index := first_difference(reference.token_ids, trial.token_ids)) is not None
    )
    return Fidelity("differs" if found else "identical", len(pairs), found)


def first_difference(first: Sequence[int], second: Sequence[int]) -> int | None:
    """Index from which two sequences differ; None when they are equal."""
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return None if len(first) == len(second) else min(len(first), len(second))
