"""From a target's name to a measured session: the jobs of one run, in this process.

A draft whose build fails is recorded with its reason and the others go on; a task whose data cannot be
had is skipped with a warning. This is the library's main entry: the command line only words it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from draftrank.board.reproduce import CUSTOM
from draftrank.building.steps.origin import Pretrained
from draftrank.catalog.backend import Asked, AskedDtype, Auto, Backend, Device, asked_dtype, is_dtype
from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.catalog.prompts import TaskPrompts
from draftrank.catalog.recipe import Recipe
from draftrank.catalog.sources.base import FetchContext
from draftrank.catalog.target import Target
from draftrank.catalog.task import Suite, SuiteTask
from draftrank.catalog.workspace import Workspace
from draftrank.errors import BuildError, DraftrankError, InvalidInputError, MissingDataError
from draftrank.jobs.contamination import check_contamination
from draftrank.measure.journal import Journal
from draftrank.measure.machine.conditions import watching
from draftrank.measure.records import DraftBuild, SessionResult
from draftrank.measure.sessions.plan import DraftArm, SessionPlan
from draftrank.measure.sessions.references import ReferenceMethod, reference_arms
from draftrank.measure.sessions.session import run_session
from draftrank.measure.statistics.stopping import DEFAULT_TARGET_CI
from draftrank.models.cache import only_process
from draftrank.progress import SILENT, Progress

if TYPE_CHECKING:
    from draftrank.engine.backends.choice import Choice
    from draftrank.models.target_folder import TargetFolder

_FAILED = "build failed: "


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What a user asks to have measured."""

    target: str
    """Id of the target."""
    drafts: tuple[str, ...] = ()
    """Ids of drafts; empty: every recipe of the target whose effort is minutes."""
    suite: str = "quick"
    """Id of the suite."""
    tasks: tuple[str, ...] = ()
    """Only these tasks of the suite; a task outside it is measured with all its prompts."""
    backend: Backend | Auto = "auto"
    """What runs the forwards of target and drafts; each on boards of its own. `auto`: the fastest in which the target and
    all named drafts can run."""
    dtype: AskedDtype = "auto"
    """What weights are loaded in."""
    device: Device | Auto = "auto"
    """Where to run."""
    allow_mixed_backends: bool = False
    """Whether drafts that the backend cannot run are measured in another one, and not ranked with the others."""
    leave_misfits_out: bool = False
    """Whether named drafts that the backend cannot run are left out, as those are that are not named."""
    mode: DecodingMode = DecodingMode()
    """How tokens are chosen."""
    repeats: int | None = None
    """Replaces the suite's number of repeats."""
    target_ci: float | None = DEFAULT_TARGET_CI
    """Half-width of each arm's relative 95 % interval at which repeating ends; None: no matter."""
    budget_s: float | None = None
    """Seconds of all trials, the suite's repeats included, up to which prompts are repeated further until
    `target_ci` is reached; None: the suite's repeats are all there are."""
    seed: int = 0
    """Seed of arm order."""
    fresh: bool = False
    """Measure again even if the session is finished."""
    references: tuple[ReferenceMethod, ...] = ()
    """What transformers' `generate` is measured with beside: plain, with the same draft models
    (`assisted`), with prompt lookup for each n-gram draft."""

    @property
    def asked(self) -> Asked:
        """What is asked of the backend."""
        return Asked(self.backend, self.dtype, self.device, self.allow_mixed_backends)


def default_target(workspace: Workspace) -> str:
    """The target meant when none is named: the only one with recipes.

    Raises:
        InvalidInputError: there are several, or none.
    """
    ids = sorted({path.parent.name for path in workspace.recipe_paths()})
    if len(ids) == 1:
        return ids[0]
    raise InvalidInputError.single(
        "name a target" if ids else "no target has a recipe",
        field="target",
        fix=f"one of {', '.join(ids)}" if ids else "start with `draftrank new draft`",
    )


def choose_recipes(workspace: Workspace, target: str, drafts: tuple[str, ...]) -> tuple[Recipe, ...]:
    """The named recipes of a target, or every one that is quick to build.

    Raises:
        InvalidInputError: an id is unknown, a recipe is invalid, or there is none; or only external engines run one.
    """
    if drafts:
        named = tuple(workspace.recipe(target, draft) for draft in dict.fromkeys(drafts))
        _require_own(named)
        return named
    found = [workspace.recipe(target, path.stem) for path in workspace.recipe_paths(target)]
    chosen = tuple(recipe for recipe in found if recipe.effort == "minutes" and not recipe.draft.served_only)
    if not chosen:
        raise InvalidInputError.single(
            f"the target {target!r} has no recipe that is quick to build",
            field="draft",
            fix="name drafts, or write one with `draftrank new draft`",
        )
    return chosen


def _require_own(recipes: tuple[Recipe, ...]) -> None:
    """Refuses drafts that only external engines run."""
    for recipe in recipes:
        if recipe.draft.served_only:
            raise InvalidInputError.single(
                f"the draft {recipe.id!r} is run by external engines only: {recipe.draft.sentence()}",
                field="draft",
                fix=f"measure it with `draftrank serve-bench {recipe.target} --draft {recipe.id} --server ID`",
            )


def build(
    workspace: Workspace,
    target: str,
    drafts: tuple[str, ...] = (),
    *,
    device: Device | Auto = "cpu",
    progress: Progress = SILENT,
) -> tuple[DraftArm, ...]:
    """Builds drafts, or finds them in the cache; a failed build is returned with its reason.

    Raises:
        InvalidInputError: target or drafts are unknown or invalid.
        MissingDataError: the target cannot be had.
    """
    declared = workspace.target(target)
    recipes = choose_recipes(workspace, target, drafts)
    from draftrank.engine.backends.choice import device_for  # loads torch: wrong names fail before

    with alone(workspace, progress):
        return build_all(workspace, declared, recipes, device_for(Asked(device=device)), progress)


def plan_run(
    workspace: Workspace,
    request: RunRequest,
    progress: Progress = SILENT,
    *,
    recipes: tuple[Recipe, ...] | None = None,
    suite: Suite | None = None,
    unbuilt: Mapping[str, str] | None = None,
) -> SessionPlan:
    """Fetches and builds all that a run needs; nothing is measured yet.

    Args:
        recipes: instead of those that the request names.
        suite: instead of the one that the request names.
        unbuilt: see `build_all`.

    Raises:
        InvalidInputError: the request or a declaration is wrong.
        MissingDataError: the target, or the data of every task, cannot be had.
    """
    target = workspace.target(request.target)
    recipes = recipes or choose_recipes(workspace, request.target, request.drafts)
    _require_own(recipes)
    reference_arms(request.references, recipes)  # a wrong request fails before anything is fetched
    suite = suite or narrowed(workspace.suite(request.suite), request.tasks, repeats=request.repeats)
    tasks, skipped = prompts_of(workspace, suite, progress)
    # This loads torch: wrong requests fail before.
    from draftrank.models.target_folder import ensure_target, gguf_file

    choice = choose_backend(workspace, request, recipes, progress)
    for line in choice.messages:
        progress.message(line)
    recipes = tuple(recipe for recipe in recipes if recipe.id not in choice.left_out)
    references = reference_arms(request.references, recipes)
    from_file = choice.backend == "llama.cpp" or not is_dtype(choice.dtype)
    if references and from_file:
        raise InvalidInputError.single(
            f"transformers' `generate` has no part in a session of {choice.backend} with the blocks of a GGUF file",
            field="--reference",
            fix="leave it out, or use another --backend",
        )
    fetch = workspace.fetch_context(progress)
    target_folder = ensure_target(target, fetch)
    target_file = gguf_file(target, fetch) if from_file else None
    plan = SessionPlan(
        target=target,
        target_folder=target_folder,
        suite=suite,
        tasks=tasks,
        drafts=(),
        backend=choice.backend,
        dtype=choice.dtype,
        device=choice.device,
        mode=request.mode,
        seed=request.seed,
        target_ci=request.target_ci,
        budget_s=request.budget_s,
        skipped_tasks=tuple(skipped),
        references=references,
        watch=watching(),
        target_file=target_file,
        workspace=workspace.root,
    )
    _require_readable(plan)
    built, doubts = build_for(
        workspace, target, target_folder, recipes, choice.device, tasks, progress, unbuilt
    )
    arms = tuple(
        arm
        if (place := choice.elsewhere.get(arm.recipe.id)) is None
        else replace(arm, backend=place.backend, dtype=place.dtype)
        for arm in built
    )
    return replace(plan, drafts=arms, warnings=(*skipped.values(), *doubts))


def _require_readable(plan: SessionPlan) -> None:
    """Refuses prompts that the target cannot read, before anything is built to be measured on them.

    Raises:
        ContextOverflowError: one does not fit the target's window.
        InvalidInputError: its chat template renders one not, or its tokenizer is that of another model.
    """
    from draftrank.measure.sessions.texts import SessionTexts
    from draftrank.models.loading import load_tokenizer, read_config

    folder = plan.target_folder
    texts = SessionTexts(plan, load_tokenizer(folder.path), folder.context_window, frozenset())
    texts.check_room()
    texts.check_ids(int(read_config(folder.path).get_text_config().vocab_size))


def prompts_of(
    workspace: Workspace, suite: Suite, progress: Progress
) -> tuple[tuple[TaskPrompts, ...], dict[str, str]]:
    """The tasks of a suite whose data can be had, and why each other one is skipped.

    Raises:
        MissingDataError: there is none.
    """
    tasks, skipped = workspace.prompts(suite, progress)
    for warning in skipped.values():
        progress.message(warning)
    if not tasks:
        raise MissingDataError("no task of the suite has its data: " + "; ".join(skipped.values()))
    return tuple(tasks), skipped


def build_for(
    workspace: Workspace,
    target: Target,
    folder: TargetFolder,
    recipes: tuple[Recipe, ...],
    device: Device,
    tasks: tuple[TaskPrompts, ...],
    progress: Progress,
    unbuilt: Mapping[str, str] | None = None,
) -> tuple[tuple[DraftArm, ...], tuple[str, ...]]:
    """Builds drafts, fails those that were made with a prompt of the tasks, and returns them with what is doubtful of the
    target's stop tokens. Arguments as for `build_all`."""
    from draftrank.models.loading import load_tokenizer
    from draftrank.models.stop_tokens import stop_token_warnings

    doubts = stop_token_warnings(folder.path, load_tokenizer(folder.path), target.prompt_format)
    built = build_all(workspace, target, recipes, device, progress, unbuilt)
    recipes_folder = workspace.root / "drafts" / target.id
    arms, unknown = check_contamination(built, tasks, folder.path, workspace.cache, recipes_folder)
    for warning in (*doubts, *unknown):
        progress.message(warning)
    return arms, doubts


def choose_backend(
    workspace: Workspace,
    request: RunRequest,
    recipes: tuple[Recipe, ...],
    progress: Progress = SILENT,
    *,
    offline: bool = False,
) -> Choice:
    """What a run of these recipes takes; the target is fetched, unless `offline`, and nothing is built.

    Raises:
        InvalidInputError: what the request asks for cannot run, or no backend fits.
        MissingDataError: the target cannot be had.
    """
    from draftrank.engine.backends.choice import Candidates, choose
    from draftrank.models.target_folder import ensure_target, gguf_file

    context = workspace.fetch_context(progress)
    if offline:
        context = replace(context, offline=True)
    target = workspace.target(request.target)
    candidates = Candidates(
        target.id,
        ensure_target(target, context).path,
        recipes,
        named=bool(request.drafts) and not request.leave_misfits_out,
        gguf=partial(gguf_file, target, context),
        origin=partial(_origin, context=context),
    )
    return choose(request.asked, candidates)


def resolved(workspace: Workspace, request: RunRequest) -> RunRequest:
    """The request with what `auto` takes here, and without the drafts that are left out; as it is where the target has not
    been fetched yet.

    Raises:
        InvalidInputError: what it asks for cannot run.
    """
    if not workspace.cache.is_dir():  # nothing was ever fetched or measured here, and a plan leaves no trace
        return request
    recipes = choose_recipes(workspace, request.target, request.drafts)
    try:
        choice = choose_backend(workspace, request, recipes, offline=True)
    except MissingDataError:
        return request
    return replace(
        request,
        drafts=tuple(recipe.id for recipe in recipes if recipe.id not in choice.left_out),
        backend=choice.backend,
        dtype=asked_dtype(choice.backend, choice.dtype),
        device=choice.device,
    )


def _origin(recipe: Recipe, context: FetchContext) -> Path | None:
    """Folder of the ready-made model that a draft begins with; where it cannot be had its build will say so."""
    from draftrank.models.target_folder import ensure_model

    for step in recipe.draft.build_steps:
        if isinstance(step, Pretrained):
            try:
                folder = ensure_model(step.source, context)
            except DraftrankError:
                return None
            return folder if (folder / "config.json").is_file() else None
    return None


def run(
    workspace: Workspace,
    request: RunRequest,
    journal: Journal,
    progress: Progress = SILENT,
    *,
    unbuilt: Mapping[str, str] | None = None,
) -> SessionResult:
    """Builds and measures; goes on with, or returns, what the journal has of the same run.

    One run builds and measures at a time in a workspace: two at once would slow each other, and a
    second of the same plan finds everything measured when its turn comes.

    Args:
        unbuilt: see `build_all`.

    Raises:
        InvalidInputError: the request or a declaration is wrong.
        MissingDataError: the target, or the data of every task, cannot be had.
    """
    with alone(workspace, progress):
        plan = plan_run(workspace, request, progress, unbuilt=unbuilt)
        return run_session(plan, journal, fresh=request.fresh, progress=progress)


def alone(workspace: Workspace, progress: Progress) -> AbstractContextManager[None]:
    """Waits until no other run builds or measures in the workspace, and keeps others waiting."""
    return only_process(workspace.state / "running", progress, "runs in this workspace")


def build_all(
    workspace: Workspace,
    target: Target,
    recipes: tuple[Recipe, ...],
    device: Device,
    progress: Progress,
    unbuilt: Mapping[str, str] | None = None,
) -> tuple[DraftArm, ...]:
    """Builds drafts, or finds them in the cache; a failed build is returned with its reason.

    Args:
        unbuilt: drafts whose build has failed already, with the reason: one that took too long or too much memory would do so
            again.

    Raises:
        MissingDataError: the target cannot be had.
    """
    from draftrank.building.pipeline import build_draft
    from draftrank.models.loading import window_of_folder
    from draftrank.models.target_folder import ensure_target

    fetch = workspace.fetch_context(progress)
    folder = ensure_target(target, fetch)
    arms = []
    with progress.stage("build drafts", len(recipes)) as stage:
        for recipe in recipes:
            try:
                if unbuilt and recipe.id in unbuilt:
                    raise BuildError(unbuilt[recipe.id].removeprefix(_FAILED))
                built = build_draft(recipe, target, folder, fetch, device=device)
            except (BuildError, MissingDataError) as error:
                progress.message(f"draft {recipe.id} could not be built: {error}")
                arms.append(DraftArm(recipe, None, None, f"{_FAILED}{error}"))
            else:
                record = DraftBuild(
                    recipe=recipe.model_dump(mode="json", exclude_none=True),
                    recipe_sha256=built.recipe_sha256,
                    weights_sha256=built.weights_sha256,
                    techniques=recipe.draft.techniques,
                    trained=recipe.draft.trained,
                    parameters=built.parameters,
                    bytes_on_disk=built.bytes_on_disk,
                    build_s=built.build_s,
                    context_window=window_of_folder(built.folder) if built.folder else None,
                )
                arms.append(DraftArm(recipe, record, built.folder))
            stage.advance(note=recipe.id)
    return tuple(arms)


def narrowed(
    suite: Suite, tasks: tuple[str, ...] = (), *, repeats: int | None = None, prompts: int | None = None
) -> Suite:
    """A suite with these tasks only, another number of repeats, or at most so many prompts of each task."""
    changes: dict[str, object] = {}
    if tasks:
        entries = {entry.task: entry for entry in suite.tasks}
        changes["tasks"] = tuple(entries.get(task) or SuiteTask(task=task) for task in dict.fromkeys(tasks))
    if repeats is not None:
        changes["repeats"] = repeats
    if prompts is not None:
        chosen = changes.get("tasks", suite.tasks)
        assert isinstance(chosen, tuple)
        changes["tasks"] = tuple(
            SuiteTask(task=entry.task, prompts=min(entry.prompts or prompts, prompts)) for entry in chosen
        )
    if not changes:
        return suite
    # Another selection is another suite: its numbers must not land on the named one's board.
    return suite.model_copy(update={**changes, "id": f"{suite.id}{CUSTOM}"})
