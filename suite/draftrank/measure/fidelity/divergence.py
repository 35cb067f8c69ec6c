"""Whether a draft left the target's output alone: token ids against the baseline's.

Greedy decoding has one right output, so each trial is compared with the baseline's trial of the same prompt,
turn and repeat. In fp32 any divergence is a break, except where the target gives both tokens exactly its
highest logit. In any other dtype, rounding depends on the number of positions in a forward, so a correct loop
may choose another token where the best ones are almost equal. Such a divergence is a numerical tie if both
tokens lie within the session's measured rounding (`Session.numerics`) of the target's best one; any other is
a break.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from draftrank.measure import evidence
from draftrank.measure.evidence import Numerics
from draftrank.measure.records import Session, Trial
from draftrank.measure.statistics.estimates import pair_trials

Status = Literal["identical", "ties", "breaks", "unjudged", "lossy", "not compared"]
Judged = Literal["tie", "break", "unjudged"]


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where one output first left the baseline's, and what that was."""

    task: str
    prompt: str
    turn: int
    repeat: int
    index: int
    """Index of the first emitted token that differs; the shorter output's length if one is a prefix."""
    judged: Judged
    """`tie`: rounding explains it; `break`: it does not; `unjudged`: the evidence is missing."""
    gap: float | None
    """Logit of the target's best token there minus that of the token emitted; None where unknown."""
    token: int | None = None
    """Id of the token that this arm emitted there; None where its output ended."""
    baseline_token: int | None = None
    """Id of the token that the baseline emitted there; None where its output ended."""
    before: str | None = None
    """End of the text that both share; None where it was not kept."""
    text: str | None = None
    """How this arm's output goes on; None where it was not kept."""
    baseline_text: str | None = None
    """How the baseline's output goes on; None where it was not kept."""

    @property
    def place(self) -> str:
        """For people: `token 12 of code/HumanEval-3`."""
        return f"token {self.index} of {self.task}/{self.prompt}"


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Outputs of one arm against the baseline's."""

    status: Status
    """The worst of its divergences, or `identical`; `lossy` for rules that may differ; `not compared`
    in sampling modes, whose outputs differ rightly, and without common cells."""
    compared: int
    """Outputs compared."""
    divergences: tuple[Divergence, ...]
    """One for each output that differs, in the order of task, prompt, turn and repeat."""
    agreement: float | None
    """Share of the baseline's tokens that lie before the first difference of their output."""

    @property
    def differing(self) -> int:
        """How many outputs differ."""
        return len(self.divergences)

    @property
    def ties(self) -> int:
        """How many of them by rounding alone."""
        return sum(divergence.judged == "tie" for divergence in self.divergences)

    @property
    def breaks(self) -> int:
        """How many of them for no excuse."""
        return sum(divergence.judged == "break" for divergence in self.divergences)

    @property
    def exact_match(self) -> float | None:
        """Share of outputs that are identical; None where nothing was compared."""
        return 1 - self.differing / self.compared if self.compared else None

    def earliest(self, judged: Judged) -> Divergence | None:
        """The difference of one kind at the lowest index; the first of several."""
        found = (divergence for divergence in self.divergences if divergence.judged == judged)
        return min(found, key=lambda divergence: divergence.index, default=None)


NOT_COMPARED = Fidelity("not compared", 0, (), None)


def compare_outputs(
    baseline: Iterable[Trial],
    other: Iterable[Trial],
    session: Session,
    *,
    lossy: bool = False,
    same_kernels: bool = True,
) -> Fidelity:
    """Compares the emitted tokens of every cell that both arms have; the session's mode, dtype and numerics decide
    what a difference means.

    The rule of a `lossy` arm may change the output. Without `same_kernels` the arm does not compute as the baseline
    does. The session's rounding says nothing of other kernels, so that differences are unjudged.
    """
    if not session.mode.greedy:
        return NOT_COMPARED
    pairs = pair_trials(baseline, other)
    if not pairs:
        return NOT_COMPARED
    found = []
    agreeing = 0
    for reference, trial in pairs:
        index = first_difference(reference.token_ids, trial.token_ids)
        agreeing += len(reference.token_ids) if index is None else index
        if index is not None:
            known = trial.judgement.divergence if trial.judgement else None
            judged: Judged = (
                judge_divergence(known, session.numerics, session.dtype) if same_kernels else "unjudged"
            )
            found.append(
                Divergence(
                    task=trial.task,
                    prompt=trial.prompt,
                    turn=trial.turn,
                    repeat=trial.repeat,
                    index=index,
                    judged=judged,
                    gap=known.gap if known else None,
                    token=_at(trial.token_ids, index),
                    baseline_token=_at(reference.token_ids, index),
                    before=known.before if known else None,
                    text=known.text if known else None,
                    baseline_text=known.baseline_text if known else None,
                )
            )
    total = sum(len(reference.token_ids) for reference, _ in pairs)
    return Fidelity(_status(found, lossy), len(pairs), tuple(found), agreeing / total)


def judge_divergence(known: evidence.Divergence | None, numerics: Numerics | None, dtype: str) -> Judged:
    """Tie or break, by the rule of this module's head."""
    if dtype == "fp32":
        return "tie" if known is not None and known.gap == known.baseline_gap == 0.0 else "break"
    if known is None or numerics is None or not numerics.quantiles:
        return "unjudged"
    rounding = numerics.quantiles[-1]
    gaps = (known.gap, known.baseline_gap)
    return "tie" if all(gap is not None and gap <= rounding for gap in gaps) else "break"


def blind_share(numerics: Numerics | None) -> float | None:
    """Share of places at which the target's second-best token would pass for a tie, to whole percents.

    It is how often a wrong token that happens to be the runner-up goes unnoticed; other wrong tokens lie
    further off, and pass less often. None where it was not measured.
    """
    if numerics is None or not numerics.quantiles or not numerics.gap_quantiles:
        return None
    within = sum(gap <= numerics.quantiles[-1] for gap in numerics.gap_quantiles)
    return max(0, within - 1) / max(1, len(numerics.gap_quantiles) - 1)


def first_difference(first: Sequence[int], second: Sequence[int]) -> int | None:
    """Index from which two sequences differ; None when they are equal."""
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return None if len(first) == len(second) else min(len(first), len(second))


def _at(tokens: Sequence[int], index: int) -> int | None:
    return tokens[index] if index < len(tokens) else None


def _status(found: Sequence[Divergence], lossy: bool) -> Status:
    if lossy:
        return "lossy"
    kinds = {divergence.judged for divergence in found}
    if "break" in kinds:
        return "breaks"
    if "unjudged" in kinds:
        return "unjudged"
    return "ties" if kinds else "identical"
