"""One session: a target, its baseline twice, and any number of drafts, measured side by side.

The session decides what is run and in which order, hands every finished trial to the journal before
the next begins, and goes on where an interrupted run of the same plan stopped.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from draftrank.catalog.base import sha256_of_json
from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.catalog.prompts import TaskPrompts
from draftrank.catalog.recipe import Recipe
from draftrank.catalog.sources.base import file_sha256
from draftrank.catalog.target import Target
from draftrank.catalog.task import Suite
from draftrank.measure.journal import Journal
from draftrank.measure.machine import read_machine
from draftrank.measure.records import (
    BASELINE,
    CONTROL,
    Arm,
    DraftBuild,
    Machine,
    Session,
    SessionResult,
    SessionTask,
    Trial,
)
from draftrank.measure.schedule import Block, schedule
from draftrank.progress import Progress, SilentProgress
from draftrank.version import __version__

if TYPE_CHECKING:
    from draftrank.drafting.target_folder import TargetFolder
    from draftrank.measure.bench import Bench

MEASURING_VERSION = 1
"""Raised when the engine or the session changes what trials mean, so that old ones are not reused."""


@dataclass(frozen=True, slots=True)
class DraftArm:
    """A draft that takes part, with what its build gave."""

    recipe: Recipe
    build: DraftBuild | None
    """None when the build failed."""
    folder: Path | None
    """The built draft; None for drafts without weights of their own."""
    failure: str | None = None
    """Why the build failed."""


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """Everything that decides what a session measures."""

    target: Target
    target_folder: TargetFolder
    suite: Suite
    tasks: tuple[TaskPrompts, ...]
    drafts: tuple[DraftArm, ...]
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: Literal["cpu", "cuda"] = "cpu"
    mode: DecodingMode = DecodingMode()
    seed: int = 0
    warnings: tuple[str, ...] = ()

    def sha256(self, machine: Machine) -> str:
        """Hash of the plan on a machine: equal hashes measure the same thing."""
        return sha256_of_json(
            {
                "version": [MEASURING_VERSION, __version__],
                "machine": machine.model_dump(mode="json"),
                "target": [self.target.content_sha256(), self.target_folder.weights_sha256],
                "target_files": _small_files_sha256(self.target_folder.path),
                "suite": self.suite.content_sha256(),
                "tasks": [task.model_dump(mode="json") for task in map(session_task, self.tasks)],
                "drafts": [
                    [
                        arm.recipe.id,
                        arm.recipe.content_sha256(),
                        arm.build.weights_sha256 if arm.build else "build failed",
                    ]
                    for arm in self.drafts
                ],
                "dtype": self.dtype,
                "device": self.device,
                "mode": self.mode.model_dump(mode="json"),
                "seed": self.seed,
            }
        )


def session_task(entry: TaskPrompts) -> SessionTask:
    """The record of a task as one session uses it."""
    return SessionTask(
        task=entry.task.id,
        task_sha256=entry.task.content_sha256(),
        prompts=tuple(prompt.id for prompt in entry.prompts),
        turns=tuple(len(prompt.turns) for prompt in entry.prompts),
        prompts_sha256=sha256_of_json([[prompt.id, prompt.turns] for prompt in entry.prompts]),
        max_new_tokens=entry.max_new_tokens,
    )


def run_session(
    plan: SessionPlan, journal: Journal, *, fresh: bool = False, progress: Progress | None = None
) -> SessionResult:
    """Measures a plan, or continues or returns what the journal already has of it.

    Args:
        plan: what to measure.
        journal: where trials are kept.
        fresh: measure anew even if the plan has been measured.
        progress: told of every trial.

    Raises:
        ContextOverflowError: a prompt does not fit the target's window; nothing has been measured.
    """
    from draftrank.measure.bench import Bench

    progress = progress or SilentProgress()
    machine = read_machine(plan.device)
    plan_sha256 = plan.sha256(machine)
    session = None if fresh else _to_reuse(plan, journal.find_session(plan_sha256))
    if session is not None and session.finished_at is not None:
        progress.message(f"session {session.id} has measured this already; nothing to do")
        return journal.result(session.id)
    bench = Bench.load(plan, progress)
    if session is None:
        session = _new_session(plan, plan_sha256, machine)
        journal.begin_session(session)
    else:
        progress.message(f"session {session.id} goes on where it stopped")
    done = {trial.key: trial for trial in journal.trials(session.id)}
    process = 1 + max((trial.process for trial in done.values()), default=-1)
    bench.open_arms(session, journal, progress, resumed=bool(done))
    _measure(session, bench, done, process, journal, progress)
    journal.finish_session(session.id, utc_now())
    return journal.result(session.id)


def _to_reuse(plan: SessionPlan, found: Session | None) -> Session | None:
    """A session of the same plan, unless it holds only part of its arms (an imported bundle), or has
    ended with an arm that failed though its draft was built: that one deserves another try."""
    if found is None or {arm.id for arm in found.arms} != {
        BASELINE,
        CONTROL,
        *(arm.recipe.id for arm in plan.drafts),
    }:
        return None
    broke = any(arm.failure is not None and arm.draft is not None for arm in found.arms)
    return None if broke and found.finished_at is not None else found


def _small_files_sha256(folder: Path) -> str:
    """Hash of a target's configuration, tokenizer and template: all its files beside the weights."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".jinja", ".txt", ".model"))
    return sha256_of_json([[path.name, file_sha256(path)] for path in files])


def _measure(
    session: Session,
    bench: Bench,
    done: dict[tuple[str, str, str, int, int], Trial],
    process: int,
    journal: Journal,
    progress: Progress,
) -> None:
    arms = [arm.id for arm in session.arms]
    blocks = list(schedule(session.tasks, arms, session.repeats, session.seed))
    left = [
        (block, position, arm)
        for block in blocks
        for position, arm in enumerate(block.arms)
        if bench.works(arm) and (arm, *cell_of(session, block)) not in done
    ]
    with progress.stage("measure", len(left)) as stage:
        for block, position, arm in left:
            if not bench.works(arm):  # it failed on an earlier prompt
                stage.advance()
                continue
            answers = _answers_so_far(session, block, done)
            trial = bench.decode(arm, block, position, answers, process)
            if trial is not None:
                journal.add_trial(session.id, trial)
                done[trial.key] = trial
            stage.advance(note=f"{session.tasks[block.task].task} · {arm}")


def _answers_so_far(
    session: Session, block: Block, done: dict[tuple[str, str, str, int, int], Trial]
) -> tuple[tuple[int, ...], ...]:
    """The target's own answers to the earlier turns: every arm goes on from the same context."""
    task = session.tasks[block.task]
    found = []
    for turn in range(block.turn):
        # The first repeat's, so that all repeats ask the same question, also in sampling modes.
        trial = done[(BASELINE, task.task, task.prompts[block.prompt], turn, 0)]
        found.append(trial.token_ids)
    return tuple(found)


def cell_of(session: Session, block: Block) -> tuple[str, str, int, int]:
    """Task, prompt, turn and repeat of a block, as trials name them."""
    task = session.tasks[block.task]
    return (task.task, task.prompts[block.prompt], block.turn, block.repeat)


def _new_session(plan: SessionPlan, plan_sha256: str, machine: Machine) -> Session:
    now = utc_now()
    autoregressive = [
        Arm(id=BASELINE, kind="baseline", num_speculative_tokens=0),
        Arm(id=CONTROL, kind="control", num_speculative_tokens=0),
    ]
    drafts = [
        Arm(
            id=arm.recipe.id,
            kind="draft",
            num_speculative_tokens=arm.recipe.speculate.num_speculative_tokens,
            draft=arm.build,
            failure=arm.failure,
        )
        for arm in plan.drafts
    ]
    return Session(
        id=f"{now[:10]}-{uuid.uuid4().hex[:12]}",
        plan_sha256=plan_sha256,
        created_at=now,
        finished_at=None,
        suite=plan.suite.id,
        suite_sha256=plan.suite.content_sha256(),
        draftrank_version=__version__,
        target=plan.target.id,
        target_sha256=plan.target.content_sha256(),
        target_weights_sha256=plan.target_folder.weights_sha256,
        target_parameters=plan.target_folder.parameters,
        dtype=plan.dtype,
        device=plan.device,
        runtime="torch-eager",
        mode=plan.mode,
        seed=plan.seed,
        repeats=plan.suite.repeats,
        machine=machine,
        tasks=tuple(map(session_task, plan.tasks)),
        arms=(*autoregressive, *drafts),
        warnings=plan.warnings,
    )


def utc_now() -> str:
    """The time as records hold it: UTC, ISO 8601, whole milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def trial_seed(mode: DecodingMode, cell: Sequence[str | int]) -> int:
    """Seed of one trial, equal for all arms of a block: 63 bits from the mode's seed and the cell."""
    digest = hashlib.sha256(repr((mode.seed, *cell)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
