"""The best number of proposed tokens for a draft on this machine: predicted first, then measured.

One short session at the largest k shows how far the draft's tokens are accepted, and what the forwards
cost here; from that follows what every smaller k should give (`measure.cost.model`). The most promising
ones are then measured side by side as arms of one session, since predictions are close but not proof.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from draftrank.board.reproduce import TUNING
from draftrank.catalog.recipe import MAX_SPECULATIVE_TOKENS, Recipe
from draftrank.catalog.task import Suite
from draftrank.catalog.workspace import Workspace
from draftrank.errors import InvalidInputError
from draftrank.jobs.session import RunRequest, alone, narrowed, plan_run
from draftrank.measure.cost.model import AtK, Prediction
from draftrank.measure.journal import Journal
from draftrank.measure.records import SessionResult, Trial
from draftrank.measure.sessions.session import run_session
from draftrank.measure.statistics.estimates import Estimate, compare_speed
from draftrank.measure.statistics.standing import standing_trials
from draftrank.measure.summaries.summary import summarise
from draftrank.progress import SILENT, Progress

PROBE_PROMPTS = 2
"""Prompts of each task on which acceptance at the largest k is measured."""
CANDIDATES = 4
"""Numbers of tokens that are measured, the recipe's own among them."""
DEFAULT_MAX_K = 8
"""Largest number of tokens to look at unless another is asked for, or the recipe's own is larger."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way of using the draft, predicted and measured."""

    arm: str
    """Its id in the session, e.g. `ngram-k3`."""
    k: int
    stop_below_confidence: float | None
    predicted: float | None
    """Speedup as the probe let expect it; for a confidence, as the variant's own counts do."""
    measured: Estimate | None
    """None when the arm failed."""
    acceptance_length: float | None
    behind_best: Estimate | None
    """Speed of the best variant as a multiple of this one's, on the same prompts; None for the best."""

    @property
    def apart(self) -> bool:
        """Whether it is slower than the best beyond chance."""
        interval = self.behind_best.interval if self.behind_best else None
        return interval is not None and interval.low > 1


@dataclass(frozen=True, slots=True)
class Tuning:
    """What tuning a draft gave."""

    by_k: tuple[AtK, ...]
    """The probe's prediction for each k up to the largest."""
    variants: tuple[Variant, ...]
    """Those that were measured, the fastest first."""
    declared_k: int
    """What the recipe says now."""
    declared_confidence: float | None
    """Its `stop_below_confidence`."""
    probe: SessionResult
    session: SessionResult

    @property
    def best(self) -> Variant | None:
        """The fastest as measured; None when no variant could be measured."""
        return next((variant for variant in self.variants if variant.measured), None)

    @property
    def tied(self) -> tuple[Variant, ...]:
        """Others that cannot be told apart from the best."""
        return tuple(found for found in self.variants if found.behind_best and not found.apart)

    @property
    def keeps(self) -> bool:
        """Whether what the recipe says now is the best, or cannot be told apart from it."""
        declared = self.declared_k, self.declared_confidence
        leading = (self.best, *self.tied)
        return any(one and (one.k, one.stop_below_confidence) == declared for one in leading)


def tune_k(
    workspace: Workspace,
    request: RunRequest,
    journal: Journal,
    progress: Progress = SILENT,
    *,
    max_k: int | None = None,
    confidences: tuple[float, ...] = (),
) -> Tuning:
    """Predicts the best k of a draft and confirms it by a session of variants.

    Its sessions belong to a suite of their own (`<suite>-tuning`), so they never land on a named board.

    Args:
        request: the run of this one draft.
        max_k: largest number of tokens to look at; None: `DEFAULT_MAX_K`, or the recipe's own where that is larger.
        confidences: values of `stop_below_confidence` to measure beside, each at the largest k.

    Raises:
        InvalidInputError: the request is wrong, or the draft could not be measured at the largest k.
        MissingDataError: the target, or the data of every task, cannot be had.
    """
    (draft,) = request.drafts
    recipe = workspace.recipe(request.target, draft)
    max_k = largest_k(recipe, max_k)
    _check(recipe, confidences)
    suite = workspace.suite(request.suite)
    suite = suite.model_copy(update={"id": f"{suite.id}{TUNING}"})
    largest = variant_of(recipe, max_k)

    def measure(suite: Suite, recipes: tuple[Recipe, ...]) -> SessionResult:
        plan = plan_run(workspace, request, progress, recipes=recipes, suite=suite)
        return run_session(plan, journal, fresh=request.fresh, progress=progress)

    with alone(workspace, progress):
        short = narrowed(suite, repeats=1, prompts=PROBE_PROMPTS).model_copy(update={"id": suite.id})
        probe = measure(short, (largest,))
        prediction = _prediction(probe, largest.id)
        by_k = prediction.by_k[:max_k]
        declared = recipe.speculate.num_speculative_tokens
        variants = [variant_of(recipe, k) for k in candidates(by_k, declared)]
        variants += [variant_of(recipe, max_k, confidence) for confidence in confidences]
        session = measure(suite, tuple(variants))
    confidence = recipe.speculate.stop_below_confidence
    return Tuning(by_k, _compared(session, by_k), declared, confidence, probe, session)


def variant_of(recipe: Recipe, k: int, confidence: float | None = None) -> Recipe:
    """The recipe with another k, under an id of its own."""
    suffix = f"-k{k}" + (f"-c{confidence:g}" if confidence is not None else "")
    changes: dict[str, Any] = {"num_speculative_tokens": k}
    if confidence is not None:
        changes["stop_below_confidence"] = confidence
    return recipe.model_copy(
        update={
            "id": f"{recipe.id[: 64 - len(suffix)]}{suffix}",
            "speculate": recipe.speculate.model_copy(update=changes),
        }
    )


def candidates(by_k: tuple[AtK, ...], declared: int) -> tuple[int, ...]:
    """The numbers of tokens worth measuring: the declared one, those predicted to be fastest, and where only the largest is
    predicted, as of trees, its half, its quarter and so on."""
    largest = max(at.k for at in by_k)
    best_first = [at.k for at in sorted(by_k, key=lambda at: (-at.speedup, at.k))]
    halves = [largest >> times for times in range(largest.bit_length())]
    chosen = dict.fromkeys([*([declared] if declared <= largest else []), *best_first, *halves])
    return tuple(sorted(list(chosen)[:CANDIDATES]))


def largest_k(recipe: Recipe, asked: int | None) -> int:
    """The largest number of tokens to look at.

    Raises:
        InvalidInputError: what is asked for is none.
    """
    if asked is None:
        return max(DEFAULT_MAX_K, recipe.speculate.num_speculative_tokens)
    if not 1 <= asked <= MAX_SPECULATIVE_TOKENS:
        raise InvalidInputError.single(
            f"{asked} is no number of tokens to propose",
            field="--max-k",
            fix=f"use 1 to {MAX_SPECULATIVE_TOKENS}",
        )
    return asked


def _check(recipe: Recipe, confidences: tuple[float, ...]) -> None:
    if confidences and not recipe.draft.has_confidence:
        raise InvalidInputError.single(
            f"the draft {recipe.id!r} is of kind {recipe.draft.kind!r}, which has no confidence",
            field="--confidence",
            fix="leave it out",
        )
    for confidence in confidences:
        if not 0 < confidence < 1:
            raise InvalidInputError.single(
                f"{confidence:g} is no probability to stop below",
                field="--confidence",
                fix="use a number between 0 and 1, e.g. 0.3",
            )


def _prediction(probe: SessionResult, arm_id: str) -> Prediction:
    arm = next(found for found in summarise(probe).arms if found.arm.id == arm_id)
    if arm.prediction is None:
        raise InvalidInputError.single(
            f"the draft could not be measured: {arm.arm.failure or 'no output had a step'}",
            field="draft",
            fix="mend the draft, lower --max-k, or use a suite with longer outputs",
        )
    return arm.prediction


def _compared(session: SessionResult, by_k: tuple[AtK, ...]) -> tuple[Variant, ...]:
    predicted = {at.k: at.speedup for at in by_k}
    trials: dict[str, list[Trial]] = {}
    for trial in standing_trials(session.trials):
        trials.setdefault(trial.arm, []).append(trial)
    arms = [arm for arm in summarise(session).arms if arm.arm.kind == "draft"]
    arms.sort(key=lambda arm: -(arm.speedup.value if arm.speedup else 0.0))
    best = arms[0].arm.id if arms and arms[0].speedup else None
    found = []
    for arm in arms:
        k = arm.arm.num_speculative_tokens
        recipe = arm.arm.draft.recipe if arm.arm.draft else {}
        confidence = recipe.get("speculate", {}).get("stop_below_confidence")
        own = arm.prediction.speedup if arm.prediction else None
        against = None
        if best is not None and arm.arm.id != best and arm.speedup:
            against = compare_speed(trials[arm.arm.id], trials[best]).overall
        found.append(
            Variant(
                arm=arm.arm.id,
                k=k,
                stop_below_confidence=confidence,
                predicted=predicted.get(k) if confidence is None else own,
                measured=arm.speedup,
                acceptance_length=arm.acceptance.length,
                behind_best=against,
            )
        )
    return tuple(found)
