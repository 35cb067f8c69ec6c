"""Re-runs a sample of a published result here and says whether it holds.

A bundle's figures are computed from its trials, so a false figure means a false trial. Outputs and accept
histograms follow from the weights, and anyone can compute them again. Seconds do not: they are compared with
the times of day at which trials began, and with the re-run on a machine of the same class. A trained draft
cannot be rebuilt bit by bit on another machine. If its weights differ, it is compared by acceptance length,
because otherwise no trained draft could be verified.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from draftrank.catalog.backend import is_backend, is_dtype
from draftrank.catalog.prompts import TaskPrompts
from draftrank.catalog.task import Suite, SuiteTask
from draftrank.catalog.workspace import Workspace
from draftrank.errors import InvalidInputError, MissingDataError
from draftrank.jobs.session import alone, build
from draftrank.measure.gates.clocks import taken
from draftrank.measure.gates.timeline import timeline_problems
from draftrank.measure.machine.fingerprint import read_machine
from draftrank.measure.records import (
    BASELINE,
    CONTROL,
    Arm,
    DraftBuild,
    Machine,
    Session,
    SessionResult,
)
from draftrank.measure.sessions.plan import DraftArm, SessionPlan
from draftrank.measure.sessions.session import run_session
from draftrank.measure.statistics.standing import standing_trials
from draftrank.measure.summaries.recheck import (
    Check,
    check_acceptance,
    check_outputs,
    check_prompt_lengths,
    check_speed,
    check_step_cost,
    pair_up,
)
from draftrank.progress import SILENT, Progress
from draftrank.store.bundle import part_of, read_bundle
from draftrank.store.store import Store
from draftrank.version import __version__, minor_of
from draftrank.workflows.declared_alike import check_recipe, check_target, check_tasks, sample

MIN_SAMPLE = 2
"""Prompts of each task that are run again at least: the fewest that give an interval."""
SAMPLE_S = 120.0
"""Published seconds that are measured again where speed is compared: two to three minutes with loading and
timing."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What became of one draft of a bundle."""

    bundle: str
    """The file."""
    session: str | None
    """Id of the session it is of; None when the file could not be read."""
    draft: str | None
    """Id of the draft."""
    seed: int
    """Seed of the sample."""
    prompts: tuple[str, ...]
    """What was run again, as task/prompt; empty when nothing was."""
    checks: tuple[Check, ...]
    """Everything that was looked at, in order."""
    notes: tuple[str, ...] = ()
    """What differs between there and here and may explain a difference."""

    @property
    def holds(self) -> bool:
        """Whether nothing failed and prompts were run again."""
        return bool(self.prompts) and all(check.status != "fails" for check in self.checks)


def verify(
    workspace: Workspace,
    bundle: Path,
    *,
    prompts: int | None = None,
    seed: int | None = None,
    progress: Progress = SILENT,
) -> Iterator[Verification]:
    """Checks a bundle against the workspace; for each of its drafts, builds it and runs a sample of its prompts again.

    Nothing is run for a draft when the bundle contradicts itself or the workspace.

    Args:
        prompts: how many of each task to run again; None: as many as took `SAMPLE_S` where the machine's class and
            the minor version are the bundle's, else `MIN_SAMPLE`.
        seed: of the sample; None draws one, so that nobody knows beforehand which prompts will be run.

    Yields:
        What was found, draft by draft; once without a draft where the file is no sound bundle.

    Raises:
        InvalidInputError: there is no such file, or its device is not here.
        MissingDataError: target or task data cannot be had.
    """
    if not bundle.is_file():
        raise InvalidInputError.single("is not a file", file=str(bundle), fix="name a bundle's .json file")
    seed = secrets.randbelow(2**31) if seed is None else seed
    try:
        published = read_bundle(bundle)
    except InvalidInputError as error:
        wrong = Check("bundle", "fails", str(error))
        yield Verification(str(bundle), None, None, seed, (), (wrong,))
        return
    for arm in published.session.arms:
        if arm.kind == "draft":
            part = part_of(published, {arm.id})
            yield _verify_draft(workspace, bundle, part, arm, prompts, seed, progress)


def _verify_draft(
    workspace: Workspace,
    bundle: Path,
    published: SessionResult,
    arm: Arm,
    prompts: int | None,
    seed: int,
    progress: Progress,
) -> Verification:
    session = published.session
    task_checks, tasks = check_tasks(workspace, session)
    checks = [
        Check("bundle", "holds", f"{len(published.trials)} trials add up"),
        _check_times(published),
        check_target(workspace, session),
        check_recipe(workspace, session, arm),
        *task_checks,
    ]

    def verification(
        *found: Check, ran: tuple[TaskPrompts, ...] = (), machine: Machine | None = None
    ) -> Verification:
        names = tuple(f"{task.task.id}/{prompt.id}" for task in ran for prompt in task.prompts)
        notes = tuple(_notes(session, machine)) if machine else ()
        return Verification(str(bundle), session.id, arm.id, seed, names, (*checks, *found), notes)

    if not is_backend(session.backend):
        checks.append(
            Check("backend", "fails", f"{session.backend} has retired, so nothing can be run again")
        )
    if any(check.status == "fails" for check in checks):
        return verification()
    if not tasks:
        raise MissingDataError("no task of the bundle has its data here")
    (built,) = build(workspace, session.target, (arm.id,), device=session.device, progress=progress)
    built = replace(
        built, backend=arm.backend if arm.backend and is_backend(arm.backend) else None, dtype=arm.dtype
    )
    checks.append(_check_build(arm.draft, built))
    machine = read_machine(session.device)
    untimed = _why_not_timed(session, machine)
    count = prompts or (MIN_SAMPLE if untimed else _sample_size(published, arm, len(tasks)))
    plan = _plan(workspace, session, built, sample(tasks, count, seed), progress)
    checks += [_check_target_weights(session, plan), _check_rendering(session, plan, tasks)]
    if any(check.status == "fails" for check in checks):
        return verification(machine=machine)
    again = _run(workspace, plan, progress)
    found = _compare(published, again, plan, arm, progress, untimed)
    return verification(*found, ran=plan.tasks, machine=machine)


def _check_times(published: SessionResult) -> Check:
    problems = timeline_problems(published)
    if problems:
        return Check("times", "fails", "; ".join(problems))
    return Check("times", "holds", "the stated seconds fit the times at which trials began")


def _check_build(stated: DraftBuild | None, built: DraftArm) -> Check:
    here = built.build
    if stated is None or here is None:
        return Check("weights", "fails", f"the draft cannot be built here: {built.failure}")
    for name in ("trained", "techniques", "parameters"):
        if getattr(stated, name) != getattr(here, name):
            return Check(
                "weights", "fails", f"{name} is {getattr(stated, name)}, built here {getattr(here, name)}"
            )
    if stated.weights_sha256 == here.weights_sha256:
        own = "the draft has none of its own" if here.weights_sha256 is None else "rebuilt bit by bit"
        return Check("weights", "holds", own)
    if here.trained and stated.weights_sha256 is not None:
        return Check("weights", "skipped", "they differ: training is not reproducible bit by bit")
    told = f"{stated.weights_sha256} published, {here.weights_sha256} built here"
    return Check("weights", "fails", f"{told}, and nothing in the recipe is left to chance")


def _check_target_weights(session: Session, plan: SessionPlan) -> Check:
    here = plan.target_folder.weights_sha256
    if here != session.target_weights_sha256:
        return Check("target weights", "fails", f"{session.target_weights_sha256} published, {here} here")
    return Check("target weights", "holds", "the same files")


def _check_rendering(session: Session, plan: SessionPlan, tasks: Sequence[TaskPrompts]) -> Check:
    """Whether all prompts of these tasks become the same token ids here: template and tokenizer are no weights."""
    stated = {task.task: task.rendered_sha256 for task in session.tasks}
    here = replace(plan, tasks=tuple(tasks)).session_tasks
    known = [task for task in here if stated[task.task] is not None]
    differing = [task.task for task in known if task.rendered_sha256 != stated[task.task]]
    if differing:
        told = f"{', '.join(differing)}: the chat template or the tokenizer gives other token ids here"
        return Check("rendered prompts", "fails", told)
    if not known:
        return Check("rendered prompts", "skipped", "the bundle is older than their hash")
    return Check("rendered prompts", "holds", f"the same token ids in {len(known)} of {len(here)} tasks")


def _why_not_timed(session: Session, machine: Machine) -> str | None:
    """Why seconds of this session and of here cannot be compared; None where they can."""
    if machine.machine_class != session.machine.machine_class:
        return "this machine is of another class"
    if minor_of(session.draftrank_version) != minor_of(__version__):
        return f"draftrank {session.draftrank_version} measured it, and this is {__version__}"
    return None


def _sample_size(published: SessionResult, draft: Arm, tasks: int) -> int:
    """Prompts of each task that its machine decoded in `SAMPLE_S`, by all arms of the re-run."""
    arms = {BASELINE, CONTROL, draft.id}
    trials = [trial for trial in standing_trials(published.trials) if trial.arm in arms and trial.repeat == 0]
    prompts = len({(trial.task, trial.prompt) for trial in trials})
    seconds = sum(taken(trial) for trial in trials)
    return max(MIN_SAMPLE, int(SAMPLE_S * prompts / (seconds * tasks))) if seconds else MIN_SAMPLE


def _plan(
    workspace: Workspace,
    session: Session,
    built: DraftArm,
    tasks: tuple[TaskPrompts, ...],
    progress: Progress,
) -> SessionPlan:
    from draftrank.models.target_folder import ensure_target, gguf_file

    assert is_backend(session.backend)
    of_file = session.backend == "llama.cpp" or not is_dtype(session.dtype)
    target = workspace.target(session.target)
    context = workspace.fetch_context(progress)
    suite = Suite(
        schema_version=1,
        id="verify",
        title="A sample, run again",
        tasks=tuple(SuiteTask(task=task.task.id) for task in tasks),
        repeats=1,
    )
    return SessionPlan(
        target=target,
        target_folder=ensure_target(target, context),
        target_file=gguf_file(target, context) if of_file else None,
        suite=suite,
        tasks=tasks,
        drafts=(built,),
        backend=session.backend,
        dtype=session.dtype,
        device=session.device,
        mode=session.mode,
        target_ci=None,
    )


def _run(workspace: Workspace, plan: SessionPlan, progress: Progress) -> SessionResult:
    """The re-run is kept apart from the workspace's own results."""
    with (
        alone(workspace, progress),
        tempfile.TemporaryDirectory(prefix="draftrank-verify-") as folder,
        Store.open(Path(folder) / "again.sqlite") as store,
    ):
        return run_session(plan, store, progress=progress)


def _compare(
    published: SessionResult,
    again: SessionResult,
    plan: SessionPlan,
    arm: Arm,
    progress: Progress,
    untimed: str | None,
) -> tuple[Check, ...]:
    from draftrank.measure.sessions.rerun_judge import RerunJudge  # loads torch

    failure = next((one.failure for one in again.session.arms if one.id == arm.id), None)
    if failure is not None:
        return (Check("re-run", "fails", failure),)
    here = plan.drafts[0].build
    assert arm.draft is not None
    assert here is not None
    same_weights = here.weights_sha256 == arm.draft.weights_sha256
    pairs = pair_up(published, again)
    of_draft = [pair for pair in pairs if pair.published.arm == arm.id]
    # Other weights propose other tokens; a lossy rule and a sampler then emit others, and rightly.
    follows = same_weights or (published.session.mode.greedy and not arm.lossy)
    exact = [pair for pair in pairs if follows or pair.published.arm != arm.id]
    speed = (
        (
            check_step_cost(published, again, arm.id),
            check_speed(published, again, arm.id, same_weights=same_weights),
        )
        if untimed is None
        else tuple(Check(name, "skipped", untimed) for name in ("step cost", "speedup"))
    )
    return (
        check_prompt_lengths(pairs),
        check_outputs(exact, RerunJudge(plan, again, progress)),
        check_acceptance(of_draft, published.session.dtype, same_weights=same_weights),
        *speed,
    )


def _notes(session: Session, machine: Machine) -> list[str]:
    there = session.machine
    found = []
    if there.machine_class != machine.machine_class:
        found.append(f"machine class: {there.machine_class} there, {machine.machine_class} here")
    for name in sorted(there.packages.keys() | machine.packages.keys()):
        versions = there.packages.get(name, "none"), machine.packages.get(name, "none")
        if versions[0] != versions[1]:
            found.append(f"{name}: {versions[0]} there, {versions[1]} here")
    return found
