"""One session's trials, boiled down to what is shown and judged. Nothing here is stored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

from draftrank.catalog.base import sha256_of_json
from draftrank.measure.cost.acceptance import Acceptance, sum_acceptance
from draftrank.measure.cost.model import Prediction, predict
from draftrank.measure.fidelity.divergence import Fidelity, compare_outputs
from draftrank.measure.fidelity.quality import QualitySummary, summarise_quality
from draftrank.measure.records import Arm, ForwardLatency, Session, SessionResult, SessionTask, Trial
from draftrank.measure.statistics.context_length import AtLength, by_length, shown_octaves
from draftrank.measure.statistics.estimates import Estimate, Interval, SpeedComparison, compare_speed, ratio
from draftrank.measure.statistics.outliers import flag_outliers
from draftrank.measure.statistics.standing import standing_trials
from draftrank.measure.summaries.stability import Stability, stability_of

UNWATCHED = "the machine was not watched, or its counters could not be read: nobody knows how calm it was"


MIN_SHOWN_PROMPTS = 4
"""Prompts of a task below which its speedup is shown without an interval."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Where an arm's time went, over all its trials."""

    decode_tokens: int
    """Tokens emitted by steps."""
    decode_s: float
    """Seconds of decoding, prefill left out."""
    prefill_s: float | None
    """Mean seconds to the first token; None without trials."""
    propose_share: float | None
    """Share of `decode_s` spent proposing; None without decode time, as the next two."""
    verify_share: float | None
    """Share spent in target forwards."""
    other_share: float | None
    """Share of the loop itself."""

    @property
    def tokens_per_second(self) -> float | None:
        """Σ tokens ÷ Σ seconds of decoding; None without decode time."""
        return ratio(self.decode_tokens, self.decode_s)


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """One arm in one task."""

    task: str
    """Id of the task."""
    speedup: Estimate | None
    """Over the baseline; None where they cannot be compared."""
    acceptance: Acceptance
    timing: Timing
    fidelity: Fidelity
    quality: QualitySummary | None
    """Where a lossy arm took part: its own and the baseline's."""
    planned: int
    """Cells (prompt, turn, repeat) that the session planned."""
    missing: int
    """Planned cells that this arm or the baseline lacks."""
    outliers: int
    """Trials that took oddly long or short; they count like all others (see `outliers`)."""
    prompts: Mapping[str, float]
    """Speedup of each prompt by itself, by prompt id."""
    known_share: float | None
    """Share of the tokens in the baseline's outputs that the draft's trimmed head knows; None for a head that knows all
    tokens, and where that was not recorded."""

    @property
    def shown_interval(self) -> Interval | None:
        """The speedup's interval, where it has at least `MIN_SHOWN_PROMPTS` prompts: from fewer its width says too little."""
        enough = len(self.prompts) >= MIN_SHOWN_PROMPTS
        return self.speedup.interval if self.speedup and enough else None


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """One arm in its session."""

    arm: Arm
    """The arm as recorded: k, how it was made, memory, failure."""
    speedup: Estimate | None
    """Geometric mean over the tasks; exactly 1 for the baseline itself."""
    tasks: tuple[TaskSummary, ...]
    """In the session's order."""
    acceptance: Acceptance
    draft_cost: float | None
    """Median draft forward ÷ median target forward, both of one token; for a draft without forwards
    its mean proposing time per step ÷ that target forward; None where either is unknown."""
    timing: Timing
    fidelity: Fidelity
    quality: QualitySummary | None
    """Where a lossy arm took part: its own and the baseline's."""
    prediction: Prediction | None
    """What its forward times and its acceptance let expect; None for arms without them."""
    cells: str
    """Hash of the cells that it decoded: equal for arms that can be compared pair by pair."""
    lengths: tuple[AtLength, ...]
    """By context length, the shortest first; empty where the session's tasks do not have several lengths each."""

    @property
    def planned(self) -> int:
        """Cells planned over all tasks."""
        return sum(task.planned for task in self.tasks)

    @property
    def missing(self) -> int:
        """Planned cells that this arm or the baseline lacks."""
        return sum(task.missing for task in self.tasks)

    @property
    def outliers(self) -> int:
        """Trials that took oddly long or short, over all tasks."""
        return sum(task.outliers for task in self.tasks)


@dataclass(frozen=True, slots=True)
class SessionSummary:
    """One session, judged by nobody yet."""

    session: Session
    arms: tuple[ArmSummary, ...]
    """In the session's order."""
    noise: SpeedComparison | None
    """A/A: the control arm against the baseline; None where either is missing."""
    skipped_tasks: tuple[str, ...]
    """Tasks of the suite that the session left out."""
    stability: Stability
    """How calm the machine was."""
    trials: Mapping[str, Sequence[Trial]]
    """Those that count, by arm, sorted by their key."""

    @property
    def baseline(self) -> ArmSummary | None:
        """The arm that speedups refer to."""
        return next((arm for arm in self.arms if arm.arm.kind == "baseline"), None)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader should know: what the session noted, and whether its machine was watched."""
        # Versions that kept no environment had no watch either, and nobody could have known.
        silent = self.session.environment is not None and not self.stability.watched
        return (*self.session.warnings, *((UNWATCHED,) if silent else ()))

    @property
    def ci_reached(self) -> float | None:
        """Widest relative half-width of the 95 % intervals that the session was to narrow: those of its
        drafts and of A/A; None where one of them has no interval."""
        widths = [
            arm.speedup.interval.half_width / arm.speedup.value
            if arm.speedup and arm.speedup.interval
            else None
            for arm in self.arms
            if arm.arm.kind in ("draft", "control") and arm.arm.failure is None
        ]
        known = [width for width in widths if width is not None]
        return max(known, default=None) if len(known) == len(widths) else None


def summarise(result: SessionResult) -> SessionSummary:
    """Computes every figure of a session; the order of its trials does not matter."""
    session = result.session
    trials: dict[str, list[Trial]] = defaultdict(list)
    for trial in sorted(standing_trials(result.trials), key=lambda trial: trial.key):
        trials[trial.arm].append(trial)
    baseline = next((arm for arm in session.arms if arm.kind == "baseline"), None)
    control = next((arm for arm in session.arms if arm.kind == "control"), None)
    reference = trials[baseline.id] if baseline else []
    noise = compare_speed(reference, trials[control.id]) if control else None
    octaves = shown_octaves(reference, [task.task for task in session.tasks])
    odd = flag_outliers(trial for of_arm in trials.values() for trial in of_arm)
    return SessionSummary(
        session,
        tuple(
            _summarise_arm(session, arm, trials[arm.id], baseline, reference, octaves, odd)
            for arm in session.arms
        ),
        noise if noise is not None and noise.overall is not None else None,
        session.skipped_tasks,
        stability_of(session, result.trials),
        trials,
    )


def _summarise_arm(
    session: Session,
    arm: Arm,
    trials: Sequence[Trial],
    baseline: Arm | None,
    reference: Sequence[Trial],
    octaves: Sequence[int],
    odd: Container[object],
) -> ArmSummary:
    speed = compare_speed(reference, trials)
    # `generate` computes as the target does in the backend of the same name, and as in no other.
    same_kernels = arm.kind != "reference" or session.backend == "transformers"
    fidelity = partial(compare_outputs, session=session, lossy=arm.lossy, same_kernels=same_kernels)
    tasks = []
    for task in session.tasks:
        of_arm = [trial for trial in trials if trial.task == task.task]
        of_reference = [trial for trial in reference if trial.task == task.task]
        planned = _planned_cells(task, session.repeats)
        present = {trial.cell[1:] for trial in of_arm} & {trial.cell[1:] for trial in of_reference}
        tasks.append(
            TaskSummary(
                task.task,
                speed.tasks.get(task.task),
                sum_acceptance(of_arm),
                _timing(of_arm),
                fidelity(of_reference, of_arm),
                summarise_quality(of_arm),
                len(planned),
                len(planned - present),
                sum(trial.key in odd for trial in of_arm),
                speed.prompts.get(task.task, {}),
                _known_share(arm, of_reference),
            )
        )
    return ArmSummary(
        arm,
        speed.overall,
        tuple(tasks),
        sum_acceptance(trials),
        _draft_cost(arm, trials, baseline.latencies if baseline else ()),
        _timing(trials),
        fidelity(reference, trials),
        summarise_quality(trials),
        predict(arm, trials, reference),
        sha256_of_json([[*trial.cell, trial.attempt] for trial in trials]),
        by_length(reference, trials, octaves),
    )


def _known_share(arm: Arm, reference: Sequence[Trial]) -> float | None:
    if arm.draft is None or arm.draft.unknown_tokens is None:
        return None
    unknown = set(arm.draft.unknown_tokens)
    said = [token for trial in reference for token in trial.token_ids]
    return ratio(sum(token not in unknown for token in said), len(said))


def _planned_cells(task: SessionTask, repeats: int) -> set[tuple[str, int, int]]:
    return {
        (prompt, turn, repeat)
        for prompt, turns in zip(task.prompts, task.turns, strict=False)
        for turn in range(turns)
        for repeat in range(repeats)
    }


def _timing(trials: Sequence[Trial]) -> Timing:
    decode_s = sum(trial.decode_s for trial in trials)
    propose = ratio(sum(trial.propose_s for trial in trials), decode_s)
    verify = ratio(sum(trial.verify_s for trial in trials), decode_s)
    other = None if propose is None or verify is None else max(0.0, 1 - propose - verify)
    return Timing(
        sum(trial.decode_tokens for trial in trials),
        decode_s,
        sum(trial.prefill_s for trial in trials) / len(trials) if trials else None,
        propose,
        verify,
        other,
    )


def _draft_cost(arm: Arm, trials: Sequence[Trial], elsewhere: Sequence[ForwardLatency]) -> float | None:
    """`elsewhere` holds the baseline's latencies, for arms that carry only their own draft's."""
    if arm.kind != "draft":
        return None
    target = _by_context(arm.latencies, "target") or _by_context(elsewhere, "target")
    draft = _by_context(arm.latencies, "draft")
    steps = sum(trial.steps for trial in trials)
    if draft and target:
        # A forward grows with its context, so like is set against like where both were timed.
        common = draft.keys() & target.keys()
        above = median(draft[context] for context in common or draft)
        below = median(target[context] for context in common or target)
    elif target and steps and not any(trial.draft_forwards for trial in trials):
        above = sum(trial.propose_s for trial in trials) / steps
        below = median(target.values())
    else:
        return None
    return ratio(above, below)


def _by_context(latencies: Sequence[ForwardLatency], part: str) -> dict[int, float]:
    """Median seconds of single-token forwards by tokens already held."""
    return {entry.context: entry.median_s for entry in latencies if entry.part == part and entry.tokens == 1}
