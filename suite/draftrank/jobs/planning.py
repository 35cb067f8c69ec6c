"""From what is to be measured to a graph of jobs, without those that are done already."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from draftrank.catalog.backend import asked_dtype
from draftrank.catalog.recipe import Recipe
from draftrank.catalog.workspace import Workspace
from draftrank.jobs.job import Job
from draftrank.jobs.session import RunRequest, choose_recipes
from draftrank.measure.records import BASELINE, Session, SessionResult
from draftrank.models.cache import FACTS, draft_folder, draft_key
from draftrank.version import __version__, minor_of

_BUILD_S = {"minutes": 180.0, "hours": 3600.0}
"""What a build takes where no result says it."""
_ARM_OVERHEAD_S = 20.0
"""To open, warm up and time one arm."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A job that need not run."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Jobs in an order in which each stands behind those it waits for."""

    jobs: tuple[Job, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def estimate_s(self) -> float | None:
        """Seconds of all jobs, one after the other; None where one is unknown."""
        known = [job.estimate_s for job in self.jobs]
        return sum(one for one in known if one is not None) if None not in known else None


def plan_jobs(
    workspace: Workspace,
    requests: Iterable[RunRequest],
    results: Sequence[SessionResult] = (),
    *,
    machine_class: str | None = None,
    cache: Path | None = None,
) -> Plan:
    """The jobs of several sessions; what they share is one job.

    Args:
        results: what is known: a session with the same recipes that is finished is left out unless it is asked for
            `fresh`, and earlier figures give the estimates.
        machine_class: only sessions of this class count as done; None: any.
        cache: where the jobs will find drafts that are built already; None: each may run on a machine of its own.

    Raises:
        InvalidInputError: a target, draft, suite or task is unknown or invalid.
    """
    jobs: dict[str, Job] = {}
    left_out: dict[str, str] = {}
    for request in requests:
        target = workspace.target(request.target)
        recipes = choose_recipes(workspace, request.target, request.drafts)
        suite = workspace.suite(request.suite)
        named = replace(request, drafts=tuple(recipe.id for recipe in recipes))
        id_ = _session_id(named)
        done = (
            None if request.fresh else _done(named, recipes, suite.content_sha256(), results, machine_class)
        )
        if done is not None:
            left_out[id_] = f"session {done.id} has measured it"
            continue
        fetch = f"fetch {target.id} for {request.suite}"
        begun = jobs.get(fetch)  # by another session: one job fetches the sources of all their drafts
        drafts = (*(begun.request.drafts if begun else ()), *named.drafts)
        jobs[fetch] = Job(fetch, "fetch", replace(named, drafts=tuple(dict.fromkeys(drafts))))
        builds = []
        for recipe in recipes:
            if not recipe.draft.has_weights:
                continue
            build = f"build {target.id}/{recipe.id}" + (
                f" on {request.device}" if request.device == "cuda" else ""
            )
            if cache is not None and _is_built(recipe, cache):
                left_out[build] = "it is in the cache"
                continue
            estimate = _build_s(recipe, results)
            jobs.setdefault(build, Job(build, "build", named, recipe.id, (fetch,), estimate_s=estimate))
            builds.append(build)
        jobs[id_] = Job(
            id_, "session", named, None, (fetch,), tuple(builds), _session_s(named, len(recipes) + 2, results)
        )
    return Plan(tuple(jobs.values()), tuple(LeftOut(*one) for one in left_out.items()))


def _is_built(recipe: Recipe, cache: Path) -> bool:
    """Whether the cache has the draft, for the weights that a draft of this target was built for before. Where the
    target has changed since, the session builds it anew."""
    for file in (cache / "drafts").glob(f"*/{FACTS}"):
        facts = json.loads(file.read_text("utf-8"))
        key = draft_key(recipe.draft, facts["target_weights_sha256"])
        if facts["target"] == recipe.target and draft_folder(cache, key).is_dir():
            return True
    return False


def _session_id(request: RunRequest) -> str:
    place = dict.fromkeys((request.backend, request.dtype, request.device))
    words = [request.target, request.suite, *place, request.mode.label]
    words += [f"seed {request.seed}"] if request.seed else []
    # All drafts by name: two sessions of as many drafts are two jobs.
    return f"session {' '.join(words)}: {'+'.join(request.drafts)}"


def _done(
    request: RunRequest,
    recipes: Sequence[Recipe],
    suite_sha256: str,
    results: Iterable[SessionResult],
    machine_class: str | None,
) -> Session | None:
    wanted = {recipe.id: recipe.content_sha256() for recipe in recipes}
    for result in results:
        session = result.session
        measured = {arm.id: arm.draft.recipe_sha256 for arm in session.arms if arm.draft and not arm.failure}
        if (
            session.finished_at is not None
            and (session.target, session.suite_sha256) == (request.target, suite_sha256)
            and (session.backend, session.device) == (request.backend, request.device)
            and (
                asked_dtype(session.backend, session.dtype) == request.dtype or session.backend == "llama.cpp"
            )  # whose file says it
            and session.mode == request.mode
            and minor_of(session.draftrank_version) == minor_of(__version__)
            and machine_class in (None, session.machine.machine_class)
            and wanted.items() <= measured.items()
            and not (request.tasks or request.repeats)
        ):
            return session
    return None


def _build_s(recipe: Recipe, results: Iterable[SessionResult]) -> float:
    wanted = recipe.content_sha256()
    found = [
        arm.draft.build_s
        for result in results
        for arm in result.session.arms
        if arm.draft and arm.draft.recipe_sha256 == wanted and arm.draft.build_s
    ]
    return found[-1] if found else _BUILD_S[recipe.effort]


def _session_s(request: RunRequest, arms: int, results: Iterable[SessionResult]) -> float | None:
    """As long as the baseline of an earlier session of this target and suite took, for every arm."""
    for result in reversed(list(results)):
        session = result.session
        known = (session.target, session.suite, session.backend, asked_dtype(session.backend, session.dtype))
        wanted = (request.target, request.suite, request.backend, request.dtype)
        if session.finished_at and known == wanted:
            spent = [trial.decode_s + trial.prefill_s for trial in result.trials if trial.arm == BASELINE]
            return arms * (sum(spent) + _ARM_OVERHEAD_S) + (request.budget_s or 0.0)
    return None
