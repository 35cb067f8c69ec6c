"""From a server's declaration and drafts' ids to a measured serving session."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from draftrank.catalog.base import sha256_of_json
from draftrank.catalog.recipe import MAX_SPECULATIVE_TOKENS, Recipe
from draftrank.catalog.server import Server
from draftrank.catalog.workspace import Workspace
from draftrank.errors import BuildError, InvalidInputError, MissingDataError
from draftrank.jobs.session import alone, build_for, narrowed, prompts_of
from draftrank.measure.evidence import utc_now
from draftrank.measure.machine.environment import read_environment
from draftrank.measure.machine.fingerprint import read_machine
from draftrank.measure.records import BASELINE, CONTROL, Machine
from draftrank.measure.serving_records import PromptTurn, ServingArm, ServingResult, ServingSession
from draftrank.measure.sessions.plan import DraftArm, SessionPlan
from draftrank.measure.sessions.texts import SessionTexts
from draftrank.progress import SILENT, Progress
from draftrank.serving.base import CompletionRequest, Engine, Speculation
from draftrank.serving.engines import engine_elsewhere, find_engine
from draftrank.serving.http import ServerError
from draftrank.serving.load import version_of
from draftrank.serving.sending import in_turn
from draftrank.store.store import Store
from draftrank.version import __version__
from draftrank.workflows.serving_arms import OpenServer, Servers, threads_of
from draftrank.workflows.serving_session import Run, warm_up
from draftrank.workflows.speculation import export_draft, facts_of, gguf_of_target, speculation_of, told_of

MEASURING_VERSION = 1
"""Raised when rounds come to mean something else, so that old ones are not gone on with."""
DEFAULT_ROUNDS = 6
_ONE_SERVER = (
    "the servers ran already: the plain server is its own twin, and how they were started is not known"
)


@dataclass(frozen=True, slots=True)
class ServeRequest:
    """What a user asks to have measured in servers."""

    target: str
    """Id of the target."""
    server: str
    """Id of the server."""
    drafts: tuple[str, ...] = ()
    """Ids of drafts; empty: the plain server and its twin alone."""
    concurrencies: tuple[int, ...] = (1,)
    """Requests in flight at once."""
    suite: str = "quick"
    """Id of the suite whose prompts are sent."""
    tasks: tuple[str, ...] = ()
    """Only these tasks of the suite."""
    prompts: int | None = None
    """At most so many prompts of each task."""
    rounds: int = DEFAULT_ROUNDS
    """Blocks of every concurrency."""
    rate: float | None = None
    """Requests per second of an open loop; None: a closed loop."""
    k: tuple[int, ...] = ()
    """Tokens proposed per step, each an arm of every draft; empty: what the recipe says."""
    seed: int = 0
    """Seed of the prompts' order and of arrivals."""
    idle_s: float = 120.0
    """Seconds without a byte after which a request counts as hung."""
    pause: bool = True
    """Whether servers are stopped while they have no load; else they only idle."""
    fresh: bool = False
    """Measure again even if the session is finished."""


@dataclass(frozen=True, slots=True)
class _Arm:
    """An arm with what its server is given."""

    record: ServingArm
    speculation: Speculation | None


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything that decides what is measured."""

    asked: ServeRequest
    declared: Server
    engine: Engine
    session: SessionPlan
    """Target, suite, tasks and built drafts."""
    machine: Machine
    texts: SessionTexts

    def sha256(self, version: str, arms: Sequence[_Arm]) -> str:
        """Hash of the plan with a version of the engine: equal hashes measure the same thing."""
        plan, asked = self.session, self.asked
        return sha256_of_json(
            {
                "version": [MEASURING_VERSION, __version__],
                "machine": self.machine.model_dump(mode="json"),
                "target": [plan.target.content_sha256(), plan.target_folder.weights_sha256],
                "server": [self.declared.id, self.declared.content_sha256(), version],
                "suite": plan.suite.content_sha256(),
                "tasks": [task.model_dump(mode="json") for task in plan.session_tasks],
                "arms": [
                    [
                        arm.record.id,
                        arm.record.draft.recipe_sha256 if arm.record.draft else None,
                        arm.record.draft.weights_sha256 if arm.record.draft else None,
                        arm.record.export_sha256,
                        arm.record.speculation,
                    ]
                    for arm in arms
                ],
                "load": [sorted(set(asked.concurrencies)), asked.rate, asked.rounds, asked.seed, asked.pause],
            }
        )


def serve_bench(
    workspace: Workspace, asked: ServeRequest, store: Store, progress: Progress = SILENT
) -> ServingResult:
    """Exports drafts, serves them, and measures them beside the plain server; goes on with what the store has of the same
    session, and tries again the servers that failed there.

    Raises:
        InvalidInputError: the request or a declaration is wrong, or the engine has no such draft.
        MissingDataError: the engine is not here, or the target, or the data of every task, cannot be had.
        ServerError: the plain server does not start or breaks off; what was measured is stored.
    """
    declared = workspace.server(asked.server)
    recipes = tuple(workspace.recipe(asked.target, draft) for draft in dict.fromkeys(asked.drafts))
    engine = (
        engine_elsewhere(declared.engine) if declared.attach else find_engine(declared.engine, workspace.root)
    )
    _check(asked, declared, engine, recipes)
    scratch = workspace.cache / "scratch" / f"serving-{uuid.uuid4().hex[:12]}"
    try:
        with alone(workspace, progress):
            plan = _plan(workspace, asked, declared, engine, recipes, progress)
        arms = list(_arms(workspace, plan, scratch, progress))
        with alone(workspace, progress):
            return _measure(workspace, plan, arms, store, scratch, progress)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check(asked: ServeRequest, declared: Server, engine: Engine, recipes: Sequence[Recipe]) -> None:
    """Refuses a wrong request before anything is fetched, built or started."""
    for concurrency in asked.concurrencies:
        if not 1 <= concurrency <= declared.max_requests:
            raise InvalidInputError.single(
                f"{concurrency} requests in flight do not fit the server {declared.id!r}, which works on up to "
                f"{declared.max_requests} at once",
                field="--concurrency",
                fix="ask for fewer, or raise max_requests in the server's file",
            )
    if not asked.concurrencies or asked.rounds < 1 or (asked.prompts is not None and asked.prompts < 1):
        raise InvalidInputError.single(
            "nothing would be measured",
            field="--rounds",
            fix="ask for at least one round, prompt and concurrency",
        )
    if asked.rate is not None and asked.rate <= 0:
        raise InvalidInputError.single("is not above 0", field="--rate", fix="write requests per second")
    for k in asked.k:
        if not 1 <= k <= MAX_SPECULATIVE_TOKENS:
            raise InvalidInputError.single(
                f"{k} is not from 1 to {MAX_SPECULATIVE_TOKENS}", field="--k", fix="choose another k"
            )
    if declared.attach and len(set(asked.k)) > 1:
        raise InvalidInputError.single(
            f"the servers of {declared.id!r} run already, each with a k of its own",
            field="--k",
            fix="name the one that they run with, or none where it is the recipe's",
        )
    for recipe in recipes:
        if declared.attach and recipe.id not in declared.attach.drafts:
            raise InvalidInputError.single(
                f"names no server that runs the draft {recipe.id!r}",
                file=f"tasks/servers/{declared.id}.yaml",
                field="attach.drafts",
                fix=f"add `{recipe.id}: ADDRESS`",
            )
        for k in _ks(asked, recipe):
            engine.check(speculation_of(recipe, Path(recipe.id), k))


def _plan(
    workspace: Workspace,
    asked: ServeRequest,
    declared: Server,
    engine: Engine,
    recipes: Sequence[Recipe],
    progress: Progress,
) -> _Plan:
    target = workspace.target(asked.target)
    suite = narrowed(workspace.suite(asked.suite), asked.tasks, prompts=asked.prompts)
    tasks, skipped = prompts_of(workspace, suite, progress)
    from draftrank.models.loading import load_tokenizer  # loads torch: wrong requests fail before
    from draftrank.models.stop_tokens import read_stop_tokens
    from draftrank.models.target_folder import ensure_target

    folder = ensure_target(target, workspace.fetch_context(progress))
    tokenizer = load_tokenizer(folder.path)
    arms, doubts = build_for(workspace, target, folder, tuple(recipes), "cpu", tasks, progress)
    plan = SessionPlan(
        target=target,
        target_folder=folder,
        suite=suite,
        tasks=tasks,
        drafts=arms,
        dtype=declared.dtype,
        device=declared.device,
        seed=asked.seed,
        warnings=(*skipped.values(), *doubts),
        skipped_tasks=tuple(skipped),
        workspace=workspace.root,
    )
    window = min(declared.context, folder.context_window)
    texts = SessionTexts(plan, tokenizer, window, read_stop_tokens(folder.path, tokenizer))
    texts.check_room()
    machine = read_machine(declared.device, threads=threads_of(declared))
    return _Plan(asked, declared, engine, plan, machine, texts)


# -- arms ----------------------------------------------------------------------------------------


def _arms(workspace: Workspace, plan: _Plan, scratch: Path, progress: Progress) -> Iterator[_Arm]:
    """The plain server, its twin, and every draft at every k; a draft that cannot be had is an arm that has failed."""
    yield _Arm(ServingArm(id=BASELINE, kind="baseline"), None)
    yield _Arm(ServingArm(id=CONTROL, kind="control"), None)
    for arm in plan.session.drafts:
        exported, failure = None, arm.failure
        if failure is None and not plan.declared.attach:
            try:
                exported = export_draft(
                    workspace, arm.recipe, plan.declared.engine, scratch / arm.recipe.id, progress
                )
            except (BuildError, MissingDataError) as error:
                failure = f"export failed: {error}"
                progress.message(f"draft {arm.recipe.id}: {failure}")
        for k in _ks(plan.asked, arm.recipe):
            yield _draft_arm(plan, arm, exported, failure, k)


def _draft_arm(plan: _Plan, arm: DraftArm, exported: Path | None, failure: str | None, k: int) -> _Arm:
    recipe, several = arm.recipe, len(plan.asked.k) > 1
    speculation = speculation_of(recipe, exported, k)
    record = ServingArm(
        id=f"{recipe.id}-k{k}" if several else recipe.id,
        kind="draft",
        draft_id=recipe.id,
        draft=arm.build,
        num_speculative_tokens=k,
        failure=failure,
    )
    facts: dict[str, Any] = {"speculation": told_of(speculation)}
    if not plan.declared.attach:
        facts = facts_of(recipe, plan.declared.engine, speculation) if failure is None else {}
    return _Arm(record.model_copy(update=facts), speculation)


def _ks(asked: ServeRequest, recipe: Recipe) -> tuple[int, ...]:
    """How many tokens are proposed per step; of a cascade the model alone is served."""
    own = getattr(recipe.draft, "max_model_tokens", None) or recipe.speculate.num_speculative_tokens
    return tuple(dict.fromkeys(asked.k)) or (own,)


# -- the session ---------------------------------------------------------------------------------


def _measure(
    workspace: Workspace, plan: _Plan, arms: Sequence[_Arm], store: Store, scratch: Path, progress: Progress
) -> ServingResult:
    declared, asked = plan.declared, plan.asked
    target, folder = plan.session.target, plan.session.target_folder.path
    logs = workspace.state / "logs" / "serving"
    servers = Servers(plan.engine, declared, folder, logs, workspace.root, asked.idle_s, asked.pause)
    plain: OpenServer | None = None
    try:
        if declared.attach:
            plain = servers.open(arms[0].record, None)
            version = version_of(plan.engine, plain.client)
        else:
            version = plan.engine.version()
        plan_sha256 = plan.sha256(version, arms)
        known = None if asked.fresh else store.serving.find_session(plan_sha256)
        if known is not None and known.finished_at is not None:
            again = _to_try_again(known, arms)
            if not again:
                progress.message(
                    f"serving session {known.id} has measured this already (--fresh measures again)"
                )
                return store.serving.result(known.id)
            progress.message(f"trying again what failed: {', '.join(again)}")
        if plain is None:
            if declared.engine == "llama.cpp":
                servers.model = gguf_of_target(workspace, target, folder, declared.dtype, scratch, progress)
            with progress.stage("start the plain server"):
                plain = servers.open(arms[0].record, None)
        if known is None:
            turns, prompts = _plain_outputs(plan, servers, plain, progress)
            known = _new_session(plan, plan_sha256, version, arms, turns)
            store.serving.begin_session(known)
        else:
            progress.message(f"going on with serving session {known.id}")
            prompts = _prompts(plan, known.turns)
            warm_up(servers, plain, prompts, max(known.concurrencies))
            store.serving.reopen_session(known.id)
        store.serving.update_arm(
            known.id,
            known.arms[0].model_copy(
                update={"flags": plain.flags, "start_s": plain.start_s, "failure": None, "log_tail": None}
            ),
        )
        plain.pause()
        result = store.serving.result(known.id)
        speculations = {arm.record.id: arm.speculation for arm in arms if arm.record.failure is None}
        run = Run(
            servers,
            store.serving,
            result.session,
            speculations,
            prompts,
            list(result.rounds),
            progress,
        )
        run.measure()
        run.judge()
    finally:
        servers.close_all()
    if known.finished_at is not None and len(run.rounds) == len(result.rounds):  # in vain: it stays as it was
        for arm in known.arms:
            store.serving.update_arm(known.id, arm)
        store.serving.finish_session(known.id, known.finished_at)
    else:
        store.serving.finish_session(known.id, utc_now())
    return store.serving.result(known.id)


def _to_try_again(known: ServingSession, arms: Sequence[_Arm]) -> list[str]:
    """Arms of a session whose servers failed, though their drafts could be had."""
    at_hand = {arm.record.id for arm in arms if arm.record.failure is None}
    return [arm.id for arm in known.arms if arm.failure is not None and arm.id in at_hand]


def _plain_outputs(
    plan: _Plan, servers: Servers, plain: OpenServer, progress: Progress
) -> tuple[tuple[PromptTurn, ...], list[CompletionRequest]]:
    """Every prompt turn continued by the plain server alone, with the request that asks for it."""
    turns: list[PromptTurn] = []
    prompts: list[CompletionRequest] = []
    first = _request(plan, 0, 0, 0, ())
    warm_up(servers, plain, [first], max(plan.asked.concurrencies))
    total = sum(len(prompt.turns) for entry in plan.session.tasks for prompt in entry.prompts)
    with progress.stage("decode in the plain server alone", total) as stage:
        for index, entry in enumerate(plan.session.tasks):
            for place, prompt in enumerate(entry.prompts):
                answers: list[tuple[int, ...]] = []
                for turn in range(len(prompt.turns)):
                    request = _request(plan, index, place, turn, answers)
                    try:
                        (found,) = in_turn(servers.engine, plain.client, [request])
                    except ServerError as error:
                        raise plain.ended(str(error)) from error
                    answers.append(found.token_ids)
                    prompts.append(request)
                    turns.append(
                        PromptTurn(
                            task=entry.task.id,
                            prompt=prompt.id,
                            turn=turn,
                            prompt_tokens=len(request.prompt),
                            max_new_tokens=request.max_new_tokens,
                            token_ids=found.token_ids,
                        )
                    )
                    stage.advance(note=f"{entry.task.id}/{prompt.id}")
    return tuple(turns), prompts


def _prompts(plan: _Plan, turns: Sequence[PromptTurn]) -> list[CompletionRequest]:
    """The requests of turns that have been decoded before, in their order."""
    outputs = {(turn.task, turn.prompt, turn.turn): turn.token_ids for turn in turns}
    found = []
    for index, entry in enumerate(plan.session.tasks):
        for place, prompt in enumerate(entry.prompts):
            answers = [outputs[entry.task.id, prompt.id, turn] for turn in range(len(prompt.turns))]
            found += [_request(plan, index, place, turn, answers[:turn]) for turn in range(len(prompt.turns))]
    return found


def _request(
    plan: _Plan, task: int, prompt: int, turn: int, answers: Sequence[Sequence[int]]
) -> CompletionRequest:
    return CompletionRequest(
        plan.texts.render(task, prompt, turn, answers),
        plan.session.tasks[task].max_new_tokens,
        plan.texts.stop_tokens,
    )


def _new_session(
    plan: _Plan, plan_sha256: str, version: str, arms: Sequence[_Arm], turns: tuple[PromptTurn, ...]
) -> ServingSession:
    session, declared = plan.session, plan.declared
    return ServingSession(
        **session.measurement(),
        plan_sha256=plan_sha256,
        finished_at=None,
        server=declared.id,
        server_declared=declared.model_dump(mode="json", exclude_defaults=True),
        server_sha256=declared.content_sha256(),
        engine=plan.engine.name,
        engine_version=version,
        machine=plan.machine,
        environment=read_environment(declared.device, session.workspace),
        turns=turns,
        concurrencies=tuple(sorted(set(plan.asked.concurrencies))),
        rate=plan.asked.rate,
        rounds=plan.asked.rounds,
        seed=plan.asked.seed,
        arms=tuple(arm.record for arm in arms),
        warnings=(*session.warnings, *session.short_windows, *([_ONE_SERVER] if declared.attach else [])),
    )
