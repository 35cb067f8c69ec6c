"""A board and its rows: what the terminal, the JSON and the site all show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from pydantic import with_config

from draftrank.board.proposers import proposer_of, technique_in_words
from draftrank.board.references import DOCUMENTED, ReferenceRow
from draftrank.board.remarks import remarks_on
from draftrank.board.reproduce import reproduce_command
from draftrank.catalog.base import sha256_of_json
from draftrank.measure.fidelity.divergence import Status
from draftrank.measure.fidelity.quality import QualitySummary
from draftrank.measure.gates.gate import Finding, Verdict
from draftrank.measure.records import DraftBuild, Machine, Session
from draftrank.measure.serving_records import ServingSession
from draftrank.measure.statistics.estimates import Estimate, Interval, ends_of
from draftrank.measure.summaries.summary import ArmSummary, SessionSummary, TaskSummary
from draftrank.version import __version__, minor_of


@with_config(DOCUMENTED)
@dataclass(frozen=True, slots=True)
class BoardKey:
    """What two results must share to be ranked together."""

    target: str
    target_weights_sha256: str
    machine_class: str
    dtype: str
    device: str
    mode: str
    """Label of the decoding mode, e.g. `greedy`."""
    suite: str
    suite_sha256: str
    tasks_sha256: str
    """Hash of which prompts the tasks gave, and their length limits."""
    backend: str
    draftrank_version: str
    """Major and minor version: patches do not change how things are measured."""

    @property
    def backend_and_dtype(self) -> str:
        """See `Session.backend_and_dtype`."""
        return f"{self.backend} {self.dtype}"

    @property
    def place(self) -> str:
        """The board in a few words, without its target; an archived one says so."""
        words = f"{self.suite}, {self.backend_and_dtype}, {self.mode}, {self.machine_class}"
        return f"{words} (archived, draftrank {self.draftrank_version})" if self.archived else words

    @property
    def title(self) -> str:
        """The board in a few words."""
        return f"{self.target}: {self.place}"

    @property
    def archived(self) -> bool:
        """Whether another minor version than the running one measured it. How things are measured may change between
        minor versions, so that their figures are not comparable."""
        return self.draftrank_version != minor_of(__version__)

    @property
    def id(self) -> str:
        """12 hex digits, the same wherever the board is built."""
        return sha256_of_json(asdict(self))[:12]


def key_of(session: Session) -> BoardKey:
    """The board that a session belongs to."""
    return BoardKey(
        session.target,
        session.target_weights_sha256,
        session.machine.machine_class,
        session.dtype,
        session.device,
        session.mode.label,
        session.suite,
        session.suite_sha256,
        sha256_of_json(
            [
                [task.task, task.task_sha256, task.prompts_sha256, task.max_new_tokens]
                for task in session.tasks
            ]
        ),
        session.backend,
        minor_of(session.draftrank_version),
    )


def words_of(version: str, build: DraftBuild | None, field: str) -> str:
    """A draft's title or description as its recipe had it in a version of draftrank; empty where it has none. Version 0.2
    called its EAGLE heads EAGLE-3, whose architecture they do not have."""
    text = build.recipe.get(field) if build else None
    words = text.strip() if isinstance(text, str) else ""
    return words.replace("EAGLE-3", "EAGLE") if minor_of(version) == "0.2" else words


@with_config(DOCUMENTED)
@dataclass(frozen=True, slots=True)
class TaskCell:
    """One row in one task."""

    speedup: float | None
    ci: tuple[float, float] | None
    acceptance_length: float | None
    tokens_per_second: float | None


@with_config(DOCUMENTED)
@dataclass(frozen=True, slots=True)
class LengthCell:
    """One row in the prompt turns of one octave of context length."""

    prompt_tokens: int
    """Mean number of prompt tokens."""
    prompts: int
    """Prompts over all tasks."""
    speedup: float | None
    ci: tuple[float, float] | None
    acceptance_length: float | None


@with_config(DOCUMENTED)
@dataclass(frozen=True, slots=True)
class RowFidelity:
    """Whether the outputs are the target's own."""

    status: Status
    exact_match: float | None
    """Share of identical outputs."""
    ties: int
    """Outputs that left the baseline's where rounding explains it."""
    breaks: int
    """Outputs that left it for no excuse."""
    agreement: float | None
    """Share of the baseline's tokens before the first difference."""


@with_config(DOCUMENTED)
@dataclass(frozen=True, slots=True)
class BoardRow:
    """One draft on one board. Figures are None where the session cannot give them."""

    draft: str
    """Id of the draft."""
    title: str
    """Its name for people; the id where the recipe has none."""
    rank: tuple[int, int] | None
    """Best and worst rank that cannot be excluded; None when not ranked."""
    ahead: Mapping[str, float]
    """Probability that it is faster than another row it is ranked with, by draft; empty when not ranked. In
    documents only where it lies between 0.05 % and 99.95 %."""
    ranked: bool
    reason: str | None
    """Why it is not ranked, and what to do."""
    findings: tuple[Finding, ...]
    """Every gate it did not pass."""
    remarks: tuple[str, ...]
    """What a reader should know that the figures do not say."""
    speedup: float | None
    """Overall, over the baseline of the same session."""
    ci: tuple[float, float] | None
    """95 % interval of the speedup."""
    acceptance_length: float | None
    acceptance_rate: float | None
    draft_cost: float | None
    """One draft forward in target forwards; of a draft without a model, its proposing per step."""
    predicted_speedup: float | None
    """From forward times and acceptance alone."""
    engine_efficiency: float | None
    """Predicted decode time ÷ measured."""
    best_k: int | None
    """The k predicted to be fastest."""
    best_k_extrapolated: bool | None
    """Whether it lies beyond the measured k, where acceptance is only assumed."""
    tokens_per_second: float | None
    outliers: int
    """Trials that took oddly long or short; they are counted like all others."""
    per_task: Mapping[str, TaskCell]
    """By task id, in the session's order."""
    per_length: tuple[LengthCell, ...]
    """By context length, the shortest first; empty where the session's tasks do not have several lengths each."""
    proposer: str
    """What proposes its tokens, e.g. `suffix decoding + EAGLE-3 head`; `unknown` when the build failed."""
    techniques: tuple[str, ...]
    """How it was made."""
    trained: bool | None
    """Whether its recipe trains it; None when the build failed, as the next three."""
    k: int
    """Tokens proposed per step at most."""
    backend: str
    """What ran the draft's forwards; where it is not the board's, the row is not ranked."""
    dtype: str
    """What they computed in."""
    parameters: int | None
    bytes_on_disk: int | None
    build_s: float | None
    peak_memory_bytes: int | None
    fidelity: RowFidelity
    lossy: bool
    """Whether its rule may change the output: such rows are ranked among themselves."""
    quality: QualitySummary | None
    """Of a lossy row's outputs."""
    baseline_quality: QualitySummary | None
    """Of the baseline's outputs in the same session."""
    session: str
    """Id of the session that measured it: pairs of trials exist only within one."""
    measured_at: str
    """UTC time, ISO 8601."""
    recipe_sha256: str | None
    weights_sha256: str | None
    build: DraftBuild | None
    """The draft as recorded; None when the build failed."""
    reproduce: str
    """The command that measures it again."""
    summary: ArmSummary
    """Everything else that is known of it."""
    earlier_recipe: bool = False
    """Whether a newer result of this draft, on any board, has another recipe."""

    @property
    def complete(self) -> bool:
        """Whether it has an output of every prompt."""
        return not any(finding.gate in ("failed", "incomplete") for finding in self.findings)

    @property
    def interval(self) -> Interval | None:
        """`ci` as an interval."""
        return Interval(*self.ci) if self.ci else None


@with_config(DOCUMENTED)
@dataclass(frozen=True, slots=True)
class BoardSession:
    """A session that gave rows to a board."""

    id: str
    measured_at: str
    """UTC time, ISO 8601."""
    baseline_tokens_per_second: float | None
    noise: Estimate | None
    """A/A: the baseline against itself; None where the session has no such comparison."""
    machine: Machine
    warnings: tuple[str, ...]
    """What a reader should know."""
    backend: str
    repeats: int
    prompts: int
    """Prompts over all tasks."""
    record: Session
    """Everything else that is known of it."""


@dataclass(frozen=True, slots=True)
class Board:
    """Drafts that may be compared, by their range of ranks; those not ranked come last."""

    key: BoardKey
    rows: tuple[BoardRow, ...]
    sessions: tuple[BoardSession, ...]
    """Those the rows come from, newest first; never empty."""
    tasks: tuple[str, ...]
    """Every task that a row has, in the newest session's order."""
    references: tuple[ReferenceRow, ...] = ()
    """Other implementations, measured beside; never ranked."""
    results: tuple[BoardRow, ...] = ()
    """Every result of every session, oldest first and not ranked against each other: what `rows` were chosen
    from."""

    @property
    def fastest(self) -> BoardRow | None:
        """The leading ranked lossless draft: no other one is surely ahead of it; None without one."""
        return next((row for row in self.rows if row.rank is not None and not row.lossy), None)

    @property
    def fastest_trained(self) -> BoardRow | None:
        """The leading one of them that its recipe trains; None without one."""
        return next(
            (row for row in self.rows if row.rank is not None and not row.lossy and row.trained), None
        )

    @property
    def newest(self) -> BoardSession:
        """The newest session with rows: its machine, baseline and noise stand in the board's head."""
        return self.sessions[0]


def row_of(summary: SessionSummary, arm: ArmSummary, verdict: Verdict) -> BoardRow:
    """The row of one arm, not yet ranked against others."""
    build, session = arm.arm.draft, summary.session
    return BoardRow(
        draft=arm.arm.id,
        title=words_of(session.draftrank_version, build, "title") or arm.arm.id,
        rank=None,
        ahead={},
        ranked=verdict.ranked,
        reason=verdict.reason,
        findings=verdict.findings,
        remarks=remarks_on(summary, arm),
        speedup=arm.speedup.value if arm.speedup else None,
        ci=ends_of(arm.speedup),
        acceptance_length=arm.acceptance.length,
        acceptance_rate=arm.acceptance.rate,
        draft_cost=arm.draft_cost,
        predicted_speedup=arm.prediction.speedup if arm.prediction else None,
        engine_efficiency=arm.prediction.engine_efficiency if arm.prediction else None,
        best_k=arm.prediction.best.k if arm.prediction else None,
        best_k_extrapolated=arm.prediction.best.extrapolated if arm.prediction else None,
        tokens_per_second=arm.timing.tokens_per_second,
        outliers=arm.outliers,
        per_task={task.task: _cell(task) for task in arm.tasks},
        per_length=tuple(
            LengthCell(
                at.prompt_tokens,
                at.prompts,
                at.speedup.value if at.speedup else None,
                ends_of(at.speedup),
                at.acceptance.length,
            )
            for at in arm.lengths
        ),
        proposer=proposer_of(build.recipe, build.techniques) if build else "unknown",
        techniques=tuple(map(technique_in_words, build.techniques)) if build else (),
        trained=build.trained if build else None,
        k=arm.arm.num_speculative_tokens,
        backend=arm.arm.backend or session.backend,
        dtype=arm.arm.dtype or session.dtype,
        parameters=build.parameters if build else None,
        bytes_on_disk=build.bytes_on_disk if build else None,
        build_s=build.build_s if build else None,
        peak_memory_bytes=arm.arm.peak_memory_bytes,
        fidelity=RowFidelity(
            arm.fidelity.status,
            arm.fidelity.exact_match,
            arm.fidelity.ties,
            arm.fidelity.breaks,
            arm.fidelity.agreement,
        ),
        lossy=arm.arm.lossy,
        quality=arm.quality if arm.arm.lossy else None,
        baseline_quality=summary.baseline.quality if arm.arm.lossy and summary.baseline else None,
        session=session.id,
        measured_at=measured_at(session),
        recipe_sha256=build.recipe_sha256 if build else None,
        weights_sha256=build.weights_sha256 if build else None,
        build=build,
        reproduce=reproduce_command(session, arm.arm.id),
        summary=arm,
    )


def session_of(summary: SessionSummary) -> BoardSession:
    """What a board says of a session."""
    session, baseline = summary.session, summary.baseline
    return BoardSession(
        session.id,
        measured_at(session),
        baseline.timing.tokens_per_second if baseline else None,
        summary.noise.overall if summary.noise else None,
        session.machine,
        summary.warnings,
        session.backend,
        session.repeats,
        sum(len(task.prompts) for task in session.tasks),
        session,
    )


def measured_at(session: Session | ServingSession) -> str:
    """When the session ended, or began if it has not ended."""
    return session.finished_at or session.created_at


def _cell(task: TaskSummary) -> TaskCell:
    interval = task.shown_interval
    return TaskCell(
        task.speedup.value if task.speedup else None,
        (interval.low, interval.high) if interval else None,
        task.acceptance.length,
        task.timing.tokens_per_second,
    )
