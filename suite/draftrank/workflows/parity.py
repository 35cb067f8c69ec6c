"""From a draft's id to a proof in another engine: export, decode here, decode there, compare.

Both engines get the same token ids, one prompt at a time, and choose greedily. Both propose k tokens in every step and
verify chains, whatever else the recipe asks for, since that is what other engines do.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from draftrank.catalog.backend import is_dtype
from draftrank.catalog.recipe import Recipe
from draftrank.catalog.workspace import Workspace
from draftrank.engine.proposer import Proposer, ProposerContext
from draftrank.engine.proposers.draft_model import ModelBasedDraft
from draftrank.engine.proposers.ngram import NgramDraft
from draftrank.errors import BuildError, InvalidInputError
from draftrank.jobs.session import RunRequest, alone, plan_run
from draftrank.measure.evidence import Divergence
from draftrank.measure.fidelity.divergence import first_difference
from draftrank.measure.fidelity.numerics import MIN_TOKENS, deviation_from, largest_deviation
from draftrank.measure.machine.fingerprint import package_version, read_machine
from draftrank.measure.parity import EngineName, Output, Parity, ParityTurn
from draftrank.measure.sessions.judging import find_divergence
from draftrank.measure.sessions.plan import DraftArm, SessionPlan
from draftrank.measure.sessions.texts import SessionTexts
from draftrank.progress import SILENT, Progress
from draftrank.serving.base import Completion, CompletionRequest, Engine, Served, Speculation
from draftrank.serving.engines import find_engine
from draftrank.serving.process import free_port, running
from draftrank.serving.sending import in_turn
from draftrank.workflows.speculation import export_draft, facts_of, gguf_of_target, speculation_of

if TYPE_CHECKING:
    from draftrank.engine.backends.base import Runtime
    from draftrank.engine.loop import Decoding, Request

_NAME = "draftrank"
_SPARE = 16
"""Tokens of context beyond the longest prompt with its output."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A prompt turn, and what this engine made of it."""

    task: str
    prompt: str
    turn: int
    request: Request
    plain: Decoding
    draft: Decoding


@dataclass(frozen=True, slots=True)
class _Here:
    """This engine with its models."""

    plan: SessionPlan
    target: Runtime
    proposer: Proposer
    texts: SessionTexts
    k: int


@dataclass(frozen=True, slots=True)
class _There:
    """What the other engine made of every prompt turn."""

    version: str
    plain: Sequence[Output]
    draft: Sequence[Output]
    rounding: float
    rounding_positions: int


def parity(
    workspace: Workspace, request: RunRequest, engine: EngineName, progress: Progress = SILENT
) -> Parity:
    """Exports a draft, runs it in another engine and here on the same prompts, and records both.

    In fp32 outputs are equal but for exact ties; in other dtypes rounding decides more often.

    Args:
        request: the run of this one draft here.

    Raises:
        InvalidInputError: the request or a declaration is wrong, or the draft is of a kind that the engine does not have.
        BuildError: the draft cannot be built or exported.
        MissingDataError: the engine is not here, or the target, or the data of every task, cannot be had.
        ServerError: the engine does not start or breaks off; with the end of its log.
    """
    (draft,) = request.drafts
    recipe = workspace.recipe(request.target, draft)
    server = None if engine == "transformers" else find_engine(engine, workspace.root)
    _require_method(recipe, engine)
    if request.backend == "llama.cpp":
        request = replace(request, dtype="auto")
    with alone(workspace, progress):
        plan = plan_run(workspace, request, progress)
    (arm,) = plan.drafts
    if arm.build is None or arm.failure is not None:
        raise BuildError(arm.failure or f"{recipe.id} could not be built")
    scratch = workspace.cache / "scratch" / f"parity-{uuid.uuid4().hex[:12]}"
    try:
        exported = export_draft(workspace, recipe, engine, scratch / recipe.id, progress)
        with alone(workspace, progress):
            here = _open(plan, arm, progress)
            turns = list(_decode_here(here, progress))
            speculation = speculation_of(recipe, exported, here.k)
            if server is None:
                there = _generate(here, turns, speculation, progress)
            else:
                log = workspace.state / "logs" / f"parity-{recipe.id}-{engine}.log"
                log.unlink(missing_ok=True)
                model = plan.target_folder.path
                if engine == "llama.cpp":
                    dtype = plan.dtype if is_dtype(plan.dtype) else "fp16"
                    model = plan.target_file or gguf_of_target(
                        workspace, plan.target, model, dtype, scratch, progress
                    )
                there = _serve(server, model, here, turns, speculation, log, progress)
            return _record(engine, arm, here, turns, there, speculation)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


# -- the draft -----------------------------------------------------------------------------------


def _require_method(recipe: Recipe, engine: str) -> None:
    if not isinstance(recipe.draft, NgramDraft) and not recipe.draft.has_weights:
        raise InvalidInputError.single(
            f"{engine} has no draft of the kind {recipe.draft.kind!r}",
            field="draft",
            fix="name an n-gram draft or one with a model",
        )
    if recipe.draft.vocabulary_mode != "same":
        raise InvalidInputError.single(
            f"the draft {recipe.id!r} has a vocabulary of its own, and parity compares drafts with the target's",
            field="draft",
            fix="name another draft",
        )


# -- here ----------------------------------------------------------------------------------------


def _open(plan: SessionPlan, arm: DraftArm, progress: Progress) -> _Here:
    from draftrank.measure.sessions.bench import Bench

    bench = Bench.load(plan, progress)
    context = ProposerContext(
        target=bench.target,
        draft_folder=arm.folder,
        target_folder=plan.target_folder.path,
        dtype=plan.dtype if is_dtype(plan.dtype) else "fp32",
        device=plan.device,
        backend=arm.backend or plan.backend,
    )
    draft, k = arm.recipe.draft, arm.recipe.speculate.num_speculative_tokens
    proposer: Proposer
    if isinstance(draft, NgramDraft):
        proposer = draft.model_copy(update={"tokens_per_match": None}).open(context)
    elif isinstance(draft, ModelBasedDraft):  # of a cascade, the model alone
        proposer = draft.open_model(context)
        k = getattr(draft, "max_model_tokens", None) or k
    else:
        proposer = draft.open(context)
    return _Here(plan, bench.target, proposer, bench.texts, k)


def _decode_here(here: _Here, progress: Progress) -> Iterator[_Asked]:
    from draftrank.engine.loop import Request, autoregressive, speculative

    plan = here.plan
    turns = sum(len(prompt.turns) for entry in plan.tasks for prompt in entry.prompts)
    with progress.stage("decode here", turns) as stage:
        for index, entry in enumerate(plan.tasks):
            for place, prompt in enumerate(entry.prompts):
                answers: list[tuple[int, ...]] = []
                for turn in range(len(prompt.turns)):
                    rendered = here.texts.render(index, place, turn, answers)
                    request = Request(rendered, entry.max_new_tokens, here.texts.stop_tokens)
                    plain = autoregressive(here.target, request)
                    draft = speculative(here.target, here.proposer, request, here.k)
                    yield _Asked(entry.task.id, prompt.id, turn, request, plain, draft)
                    answers.append(plain.token_ids)
                    stage.advance(note=f"{entry.task.id}/{prompt.id}")


# -- there ---------------------------------------------------------------------------------------


def _serve(
    engine: Engine,
    model: Path,
    here: _Here,
    turns: Sequence[_Asked],
    speculation: Speculation,
    log: Path,
    progress: Progress,
) -> _There:
    """Decodes in a server, first without the draft, then with it."""
    needed = max(tokens for _, tokens in here.plan.tokens_needed())
    context = min(needed + here.k + _SPARE, here.target.context_window)
    requests = [
        CompletionRequest(turn.request.prompt, turn.request.max_new_tokens, turn.request.stop_tokens)
        for turn in turns
    ]
    threads = read_machine(here.plan.device).threads
    outputs: list[list[Completion]] = []
    told: list[Completion] = []
    for draft in (None, speculation):
        port = free_port()
        dtype = here.plan.dtype if is_dtype(here.plan.dtype) else "fp16"
        launch = engine.launch(Served(model, _NAME, port, context, dtype, threads), draft)
        what = f"{engine.name} {'with' if draft else 'without'} the draft"
        with ExitStack() as stack:
            with progress.stage(f"start {what}"):
                client = stack.enter_context(
                    running(launch.command, port, log, name=_NAME, environment=launch.environment)
                ).client
            in_turn(engine, client, [replace(requests[0], max_new_tokens=8)])  # warms it up
            with progress.stage(f"decode in {what}", len(requests)) as stage:
                outputs.append(in_turn(engine, client, requests, stage.advance))
            if draft is None:
                few = requests[: _enough([len(output.token_ids) for output in outputs[0]])]
                with progress.stage("ask for log-probabilities", len(few)) as stage:
                    told = in_turn(
                        engine, client, [replace(request, top=2) for request in few], stage.advance
                    )
    with progress.stage("measure rounding", len(told)) as stage:
        texts = [
            (turn.request.prompt, one.token_ids, one.top) for turn, one in zip(turns, told, strict=False)
        ]
        rounding, positions = deviation_from(here.target, texts, stage)
    plain, drafted = ([_output(one) for one in found] for found in outputs)
    return _There(engine.version(), plain, drafted, rounding, positions)


def _enough(lengths: Sequence[int]) -> int:
    """How many outputs have `MIN_TOKENS` tokens."""
    tokens = 0
    for count, length in enumerate(lengths, start=1):
        tokens += length
        if tokens >= MIN_TOKENS:
            return count
    return len(lengths)


def _output(found: Completion | Decoding) -> Output:
    return Output(
        token_ids=found.token_ids,
        steps=max(0, found.steps),
        proposed=found.proposed or 0,
        decode_s=found.decode_s,
        disagreement=getattr(found, "disagreement", None),
    )


def _generate(here: _Here, turns: Sequence[_Asked], speculation: Speculation, progress: Progress) -> _There:
    """Decodes with transformers' `generate`, in this process."""
    from draftrank.engine.backends.registry import load_runtime, open_runtime
    from draftrank.engine.backends.transformers.generate import GenerateDecoder
    from draftrank.models.loading import load_model

    plan = here.plan
    assert is_dtype(plan.dtype)
    target = load_runtime(plan.target_folder.path, plan.dtype, plan.device, "transformers")
    draft = None
    if speculation.model is not None:
        model = load_model(speculation.model, plan.dtype, plan.device, full_precision=True)
        draft = open_runtime(model, "transformers")
    plain = GenerateDecoder(target)
    drafting = GenerateDecoder(
        target, draft=draft, num_speculative_tokens=here.k, max_ngram=speculation.max_ngram or None
    )
    outputs: tuple[list[Output], list[Output]] = ([], [])
    with progress.stage("decode with generate", len(turns)) as stage:
        for turn in turns:
            one = plain.decode(turn.request)
            outputs[0].append(_output(one))
            if len(one.token_ids) > 1:
                # Its first forward verifies proposals already; behind the first token it does what ours does.
                one = drafting.decode(turn.request, one.token_ids[0])
            outputs[1].append(_output(one))
            stage.advance()
    texts = [(turn.request.prompt, turn.plain.token_ids) for turn in turns]
    texts = texts[: _enough([len(output) for _, output in texts])]
    with progress.stage("measure rounding", len(texts)) as stage:
        rounding = largest_deviation(here.target, target, texts, stage)
    version = package_version("transformers") or ""
    return _There(version, *outputs, rounding, sum(len(output) - 1 for _, output in texts))


# -- the record ----------------------------------------------------------------------------------


def _record(
    engine: EngineName,
    arm: DraftArm,
    here: _Here,
    turns: Sequence[_Asked],
    there: _There,
    speculation: Speculation,
) -> Parity:
    plan = here.plan
    assert arm.build is not None
    return Parity(
        **plan.measurement(),
        machine=read_machine(plan.device),
        draft=arm.recipe.id,
        build=arm.build,
        num_speculative_tokens=here.k,
        engine=engine,
        engine_version=there.version,
        **facts_of(arm.recipe, engine, speculation),
        backend=plan.backend,
        rounding=there.rounding,
        rounding_positions=there.rounding_positions,
        turns=tuple(
            _turn(here, turn, plain, draft)
            for turn, plain, draft in zip(turns, there.plain, there.draft, strict=True)
        ),
    )


def _turn(here: _Here, turn: _Asked, plain: Output, draft: Output) -> ParityTurn:
    own = turn.plain.token_ids
    there = plain.token_ids or ()
    outputs = [
        output.model_copy(update={"token_ids": None if output.token_ids == own else output.token_ids})
        for output in (_output(turn.draft), plain, draft)
    ]
    return ParityTurn(
        task=turn.task,
        prompt=turn.prompt,
        turn=turn.turn,
        prompt_tokens=len(turn.request.prompt),
        plain_here=_output(turn.plain),
        draft_here=outputs[0],
        plain_there=outputs[1],
        draft_there=outputs[2],
        plain_divergence=_divergence(here, turn.request.prompt, own, there),
        draft_divergence=_divergence(here, turn.request.prompt, there, draft.token_ids or ()),
    )


def _divergence(
    here: _Here, prompt: Sequence[int], expected: Sequence[int], found: Sequence[int]
) -> Divergence | None:
    index = first_difference(expected, found)
    if index is None:
        return None
    return find_divergence(here.target, prompt, expected, found, index, here.texts.text)
