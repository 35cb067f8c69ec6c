"""What a job does, wherever it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pydantic import BaseModel

from draftrank.building.shared_drafts import take_shared
from draftrank.catalog.sources.base import SourceBase
from draftrank.catalog.workspace import Workspace
from draftrank.errors import BuildError
from draftrank.jobs.job import Ended, Job
from draftrank.jobs.session import build, choose_recipes, run
from draftrank.measure.journal import Journal
from draftrank.models.cache import draft_folder, draft_key, only_process
from draftrank.progress import Progress


def work(job: Job, workspace: Workspace, journal: Journal, progress: Progress, attempt: int = 1) -> Ended:
    """Does a job in this process; `attempt` counts from 1.

    Raises:
        DraftrankError: it cannot be done, and would not be done by trying again.
    """
    if job.kind == "fetch":
        _fetch(job, workspace, progress)
        return Ended(job.id, "done")
    if job.kind == "build":
        assert job.draft is not None
        (arm,) = build(
            workspace, job.request.target, (job.draft,), device=job.request.device, progress=progress
        )
        if arm.failure is not None:
            raise BuildError(arm.failure)
        return Ended(job.id, "done", built=arm.folder)
    # A second attempt goes on with what the first began, even where that one was to measure anew.
    request = replace(job.request, fresh=job.request.fresh and attempt == 1)
    result = run(workspace, request, journal, progress, unbuilt=dict(job.unbuilt))
    return Ended(job.id, "done", session=result.session.id)


def _fetch(job: Job, workspace: Workspace, progress: Progress) -> None:
    from draftrank.models.target_folder import ensure_target

    context = workspace.fetch_context(progress)
    target = ensure_target(workspace.target(job.request.target), context)
    workspace.prompts(workspace.suite(job.request.suite), progress)
    for recipe in choose_recipes(workspace, job.request.target, job.request.drafts):
        final = draft_folder(context.cache, draft_key(recipe.draft, target.weights_sha256))
        if recipe.draft.has_weights and not final.is_dir():
            with only_process(final, progress, f"the draft {recipe.id}"):
                if final.is_dir() or take_shared(context, final.name, final, progress):
                    continue
        for source in sources_in(recipe):
            source.fetch(context)


def sources_in(declared: BaseModel) -> Iterator[SourceBase]:
    """Every source that a declaration names, however deep."""
    for name in type(declared).model_fields:
        value = getattr(declared, name)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, SourceBase):
                yield one
            elif isinstance(one, BaseModel):
                yield from sources_in(one)
