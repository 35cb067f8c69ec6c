"""From a target's name to a measured session: the jobs of one run, in this process.

A draft whose build fails is recorded with its reason and the others go on; a task whose data cannot be
had is skipped with a warning. This is the library's main entry: the command line only words it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

from draftrank.board.reproduce import CUSTOM
from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.catalog.precision import Forward, Precision
from draftrank.catalog.recipe import Recipe
from draftrank.catalog.target import Target
from draftrank.catalog.task import Suite, SuiteTask
from draftrank.catalog.workspace import Workspace
from draftrank.errors import BuildError, InvalidInputError, MissingDataError
from draftrank.jobs.contamination import check_contamination
from draftrank.measure.journal import Journal
from draftrank.measure.machine.conditions import watching
from draftrank.measure.records import DraftBuild, SessionResult
from draftrank.measure.sessions.plan import DraftArm, SessionPlan
from draftrank.measure.sessions.references import ReferenceMethod, reference_arms
from draftrank.measure.sessions.session import run_session
from draftrank.measure.statistics.stopping import DEFAULT_PRECISION
from draftrank.models.cache import only_process
from draftrank.progress import Progress, SilentProgress


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
    dtype: Precision = "fp32"
    """Precision of the target."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to run."""
    forward: Forward = "eager"
    """How torch runs forwards of target and drafts; each on boards of its own."""
    mode: DecodingMode = DecodingMode()
    """How tokens are chosen."""
    repeats: int | None = None
    """Replaces the suite's number of repeats."""
    precision: float | None = DEFAULT_PRECISION
    """Half-width of each arm's relative 95 % interval at which repeating ends; None: no matter."""
    budget_s: float | None = None
    """Seconds of decoding up to which prompts are repeated until the precision is reached; None: the
    suite's repeats are all there are."""
    seed: int = 0
    """Seed of arm order."""
    fresh: bool = False
    """Measure again even if the session is finished."""
    references: tuple[ReferenceMethod, ...] = ()
    """What transformers' `generate` is measured with beside: plain, with the same draft models
    (`assisted`), with prompt lookup for each n-gram draft."""


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
        InvalidInputError: an id is unknown, a recipe is invalid, or there is none.
    """
    if drafts:
        return tuple(workspace.recipe(target, draft) for draft in dict.fromkeys(drafts))
    found = [workspace.recipe(target, path.stem) for path in workspace.recipe_paths(target)]
    chosen = tuple(recipe for recipe in found if recipe.effort == "minutes")
    if not chosen:
        raise InvalidInputError.single(
            f"the target {target!r} has no recipe that is quick to build",
            field="draft",
            fix="name drafts, or write one with `draftrank new draft`",
        )
    return chosen


def build(
    workspace: Workspace,
    target: str,
    drafts: tuple[str, ...] = (),
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    progress: Progress | None = None,
) -> tuple[DraftArm, ...]:
    """Builds drafts, or finds them in the cache; a failed build is returned with its reason.

    Raises:
        InvalidInputError: target or drafts are unknown or invalid.
        MissingDataError: the target cannot be had.
    """
    progress = progress or SilentProgress()
    _require_device(device)
    declared = workspace.target(target)
    recipes = choose_recipes(workspace, target, drafts)
    with alone(workspace, progress):
        return _build_all(workspace, declared, recipes, device, progress)


def plan_run(
    workspace: Workspace,
    request: RunRequest,
    progress: Progress | None = None,
    *,
    recipes: tuple[Recipe, ...] | None = None,
    suite: Suite | None = None,
) -> SessionPlan:
    """Fetches and builds all that a run needs; nothing is measured yet.

    Args:
        workspace: where declarations and caches lie.
        request: what to measure.
        progress: told how far it is.
        recipes: instead of those that the request names.
        suite: instead of the one that the request names.

    Raises:
        InvalidInputError: the request or a declaration is wrong.
        MissingDataError: the target, or the data of every task, cannot be had.
    """
    progress = progress or SilentProgress()
    _require_device(request.device)
    _require_forward(request)
    target = workspace.target(request.target)
    recipes = recipes or choose_recipes(workspace, request.target, request.drafts)
    references = reference_arms(request.references, recipes)
    if request.dtype == "gguf":
        _require_llama_cpp(request)
    suite = suite or _narrowed(workspace.suite(request.suite), request)
    tasks, skipped = workspace.prompts(suite, progress)
    for warning in skipped.values():
        progress.message(warning)
    if not tasks:
        raise MissingDataError("no task of the suite has its data: " + "; ".join(skipped.values()))
    from draftrank.models.loading import load_tokenizer  # loads torch: wrong requests fail before
    from draftrank.models.stop_tokens import stop_token_warnings
    from draftrank.models.target_folder import ensure_target, gguf_file

    target_folder = ensure_target(target, workspace.fetch_context(progress))
    doubts = stop_token_warnings(target_folder.path, load_tokenizer(target_folder.path), target.prompt_format)
    target_file = gguf_file(target, workspace.fetch_context(progress)) if request.dtype == "gguf" else None
    built = _build_all(workspace, target, recipes, request.device, progress)
    recipes_folder = workspace.root / "drafts" / target.id
    arms, unknown = check_contamination(built, tasks, target_folder.path, workspace.cache, recipes_folder)
    for warning in (*doubts, *unknown):
        progress.message(warning)
    return SessionPlan(
        target=target,
        target_folder=target_folder,
        suite=suite,
        tasks=tuple(tasks),
        drafts=arms,
        dtype=request.dtype,
        device=request.device,
        mode=request.mode,
        seed=request.seed,
        precision=request.precision,
        budget_s=request.budget_s,
        warnings=(*skipped.values(), *doubts, *unknown),
        skipped_tasks=tuple(skipped),
        references=references,
        watch=watching(),
        forward=request.forward,
        target_file=target_file,
        workspace=workspace.root,
    )


def run(
    workspace: Workspace, request: RunRequest, journal: Journal, progress: Progress | None = None
) -> SessionResult:
    """Builds and measures; goes on with, or returns, what the journal has of the same run.

    One run builds and measures at a time in a workspace: two at once would slow each other, and a
    second of the same plan finds everything measured when its turn comes.

    Raises:
        InvalidInputError: the request or a declaration is wrong.
        MissingDataError: the target, or the data of every task, cannot be had.
    """
    progress = progress or SilentProgress()
    with alone(workspace, progress):
        plan = plan_run(workspace, request, progress)
        return run_session(plan, journal, fresh=request.fresh, progress=progress)


def alone(workspace: Workspace, progress: Progress) -> AbstractContextManager[None]:
    """Waits until no other run builds or measures in the workspace, and keeps others waiting."""
    return only_process(workspace.state / "running", progress, "runs in this workspace")


def _build_all(
    workspace: Workspace,
    target: Target,
    recipes: tuple[Recipe, ...],
    device: Literal["cpu", "cuda"],
    progress: Progress,
) -> tuple[DraftArm, ...]:
    from draftrank.building.pipeline import build_draft
    from draftrank.models.loading import context_window
    from draftrank.models.target_folder import ensure_target

    folder = ensure_target(target, workspace.fetch_context(progress))
    arms = []
    with progress.stage("build drafts", len(recipes)) as stage:
        for recipe in recipes:
            try:
                built = build_draft(
                    recipe,
                    target,
                    folder,
                    cache=workspace.cache,
                    device=device,
                    fetch=workspace.fetch_context(progress),
                    progress=progress,
                )
            except (BuildError, MissingDataError) as error:
                progress.message(f"draft {recipe.id} could not be built: {error}")
                arms.append(DraftArm(recipe, None, None, f"build failed: {error}"))
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
                    context_window=context_window(built.folder) if built.folder else None,
                )
                arms.append(DraftArm(recipe, record, built.folder))
            stage.advance(note=recipe.id)
    return tuple(arms)


def _narrowed(suite: Suite, request: RunRequest) -> Suite:
    changes: dict[str, object] = {}
    if request.tasks:
        entries = {entry.task: entry for entry in suite.tasks}
        changes["tasks"] = tuple(
            entries.get(task) or SuiteTask(task=task) for task in dict.fromkeys(request.tasks)
        )
    if request.repeats is not None:
        changes["repeats"] = request.repeats
    if not changes:
        return suite
    # Another selection is another suite: its numbers must not land on the named one's board.
    return suite.model_copy(update={**changes, "id": f"{suite.id}{CUSTOM}"})


def _require_device(device: str) -> None:
    if device != "cuda":
        return
    from draftrank.engine.environment import compute_environment

    if compute_environment().gpu is None:
        raise InvalidInputError.single(
            "there is no CUDA device here",
            field="--device",
            fix="use --device cpu, or see `draftrank doctor`",
        )


def _require_forward(request: RunRequest) -> None:
    if request.forward == "captured" and request.device != "cuda":
        raise InvalidInputError.single(
            "CUDA graphs are captured on a GPU",
            field="--captured",
            fix="add --device cuda, or leave it out",
        )


def _require_llama_cpp(request: RunRequest) -> None:
    if request.device == "cuda":
        raise InvalidInputError.single(
            "GGUF targets are decoded by llama.cpp, on CPU",
            field="--device",
            fix="use --device cpu, or --dtype bf16",
        )
    if request.references:
        raise InvalidInputError.single(
            "transformers' `generate` has no part in a session of llama.cpp",
            field="--reference",
            fix="leave it out, or use --dtype bf16",
        )
    if request.forward != "eager":
        raise InvalidInputError.single(
            "llama.cpp decodes GGUF targets, by forwards of its own",
            field=f"--{request.forward}",
            fix="leave it out, or use --dtype bf16",
        )
    from draftrank.engine.backends.llama_cpp.runtime import load_library

    load_library()
