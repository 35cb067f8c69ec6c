"""The loaded models of one session, and how one arm decodes one prompt turn on them."""

from __future__ import annotations

import gc
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from draftrank.building.surgery.vocabulary_trimming import known_tokens
from draftrank.catalog.backend import is_dtype
from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.catalog.recipe import TypicalAcceptance
from draftrank.engine.backends.registry import dtype_of, load_gguf_runtime, load_runtime
from draftrank.engine.backends.transformers.generate import GenerateDecoder
from draftrank.engine.environment import memory_bytes, reset_peak_memory
from draftrank.engine.fresh_proposal import fresh_gap
from draftrank.engine.loop import Decoding, Request, autoregressive, speculative
from draftrank.engine.proposer import Proposal, Proposer, ProposerContext
from draftrank.engine.proposers.ngram import NgramDraft
from draftrank.errors import DraftrankError, IncompatibleDraftError
from draftrank.measure.cost.latency import ForwardError, averaged, measure_latencies, read_anew
from draftrank.measure.evidence import Numerics, ProposalCheck, SamplingCheck, utc_now
from draftrank.measure.fidelity.numerics import measure_numerics
from draftrank.measure.fidelity.sampling_check import check_sampling
from draftrank.measure.fidelity.stale_proposals import step_to_check
from draftrank.measure.machine.conditions import ThisMachine, Watch
from draftrank.measure.records import BASELINE, Arm, Session, Trial
from draftrank.measure.sessions.failures import check_cache, reason_of
from draftrank.measure.sessions.plan import DraftArm, SessionPlan, trial_seed
from draftrank.measure.sessions.schedule import Block, cell_of
from draftrank.measure.sessions.texts import SessionTexts
from draftrank.models.loading import load_tokenizer
from draftrank.models.stop_tokens import read_stop_tokens
from draftrank.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from draftrank.engine.backends.base import Runtime
    from draftrank.measure.journal import Journal

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _OpenArm:
    arm: Arm
    proposer: Proposer | None
    typical: TypicalAcceptance | None = None
    reference: GenerateDecoder | None = None
    """Decodes in the engine's place."""

    @property
    def draft(self) -> Runtime | None:
        """The draft's own runtime, if it has one."""
        return self.proposer.runtime() if self.proposer is not None else None


class Bench:
    """Holds the target and every draft in one process, so that all are measured alike."""

    def __init__(
        self, plan: SessionPlan, target: Runtime, tokenizer: PreTrainedTokenizerBase, target_bytes: int
    ) -> None:
        self._plan = plan
        self._target = target
        self._target_bytes = target_bytes
        self._stop_tokens = read_stop_tokens(plan.target_folder.path, tokenizer)
        self.texts = SessionTexts(plan, tokenizer, target.context_window, self._stop_tokens)
        """What the models are given to read."""
        self._turns = sum(len(prompt.turns) for entry in plan.tasks for prompt in entry.prompts)
        self._arms: dict[str, _OpenArm] = {}
        self._steps: dict[tuple[object, ...], tuple[int, Proposal]] = {}
        """By the key of a trial that nobody has looked at yet, the step to look at."""
        self.watch = Watch(ThisMachine(plan.device)) if plan.watch else None
        """Reads the machine's counters around trials; None where that was not asked."""
        self._session: Session
        self._journal: Journal

    @classmethod
    def load(cls, plan: SessionPlan, progress: Progress) -> Bench:
        """Loads the target; nothing is kept yet, so a refusal leaves no trace.

        Raises:
            ContextOverflowError: a prompt does not fit the target's window.
            InvalidInputError: a prompt has tokens that the target has no rows for.
        """
        with progress.stage("load the target"):
            tokenizer = load_tokenizer(plan.target_folder.path)
            before, _ = memory_bytes(plan.device)
            target = _open_target(plan)
            target.context_window = min(target.context_window, plan.target_folder.context_window)
            bench = cls(plan, target, tokenizer, 0)
            bench.texts.check_room()
            bench.texts.check_ids(target.vocabulary_size)
            # The first decode touches everything that decoding needs, so later arms find it in place.
            autoregressive(target, bench._warm_up_request(0))
            bench._target_bytes = memory_bytes(plan.device)[0] - before
        return bench

    def open_arms(self, session: Session, journal: Journal, progress: Progress, *, resumed: bool) -> None:
        """Loads every draft, warms every arm up and times forwards; an arm that cannot be opened is marked as failed.

        In a `resumed` session, which has trials already, an arm that failed then stays out: alone, without the
        baseline's trials of the same minutes, it could not be compared.
        """
        self._session, self._journal = session, journal
        with progress.stage("load and warm up the drafts", len(session.arms)) as stage:
            for arm in session.arms:
                if not (resumed and arm.failure is not None):
                    self._open_arm(arm)
                stage.advance(note=arm.id)
        self.time_forwards(progress)

    def works(self, arm_id: str) -> bool:
        """Whether an arm can still decode."""
        return arm_id in self._arms

    def decode(
        self,
        arm_id: str,
        block: Block,
        position: int,
        answers: Sequence[Sequence[int]],
        process: int,
        attempt: int = 0,
    ) -> Trial | None:
        """Decodes one prompt turn; None when the arm failed, which is then recorded.

        `position` is the arm's place in the block; `answers` are the target's to the turns before, as token ids.
        """
        opened = self._arms[arm_id]
        entry = self._plan.tasks[block.task]
        prompt = self.texts.render(block.task, block.prompt, block.turn, answers)
        cell = cell_of(self._session, block)
        request = Request(
            prompt=prompt,
            max_new_tokens=entry.max_new_tokens,
            stop_tokens=self._stop_tokens,
            mode=self._plan.mode,
            seed=trial_seed(self._plan.mode, cell),
        )
        started_at = utc_now()
        task, prompt_id, turn, repeat = cell
        try:
            if self.watch is not None:
                self.watch.begin()
            decoding = self._decode(opened, request)
            conditions = self.watch.end() if self.watch is not None else None
            if opened.reference is None:  # it has a cache of its own
                check_cache(self._target, request, decoding)
            trial = Trial(
                arm=arm_id,
                task=task,
                prompt=prompt_id,
                turn=turn,
                repeat=repeat,
                position=position,
                process=process,
                started_at=started_at,
                prompt_tokens=len(prompt),
                attempt=attempt,
                conditions=conditions,
                **{
                    one.name: getattr(decoding, one.name)
                    for one in fields(decoding)
                    if one.name != "proposals"
                },
            )
            seed, k = f"{self._session.seed}/{arm_id}/{cell}", opened.arm.num_speculative_tokens
            step = step_to_check(decoding.proposals, k, request.max_new_tokens, self._turns, seed)
            if step is not None and repeat == 0:
                self._steps[trial.key] = step
            return trial
        except Exception as error:
            if opened.arm.kind not in ("draft", "reference"):
                raise  # without a baseline nothing can be compared
            # One arm's crash must not lose what the others can still give.
            _log_unforeseen(arm_id, error)
            self._fail(opened.arm, reason_of(error))
            return None

    def check_proposal(self, trial: Trial, prompt: Sequence[int]) -> ProposalCheck | None:
        """Looks at a step of a trial of this process, which continued the prompt, once; None where there is none, or
        the arm fails at it."""
        step, opened = self._steps.pop(trial.key, None), self._arms.get(trial.arm)
        if step is None or opened is None or opened.proposer is None:
            return None
        (stood, proposal), k = step, opened.arm.num_speculative_tokens
        try:
            gap, rounding = fresh_gap(
                self._target, opened.proposer, prompt, trial.token_ids[:stood], proposal, k
            )
        except Exception as error:  # noqa: BLE001
            _log_unforeseen(trial.arm, error)
            self._fail(opened.arm, reason_of(error))
            return None
        return ProposalCheck(tokens=stood, gap=gap, rounding=rounding)

    @property
    def target(self) -> Runtime:
        """The target's runtime, for a look at outputs between trials."""
        return self._target

    @property
    def mode(self) -> DecodingMode:
        """How this session's tokens are chosen."""
        return self._plan.mode

    @property
    def lossy_arms(self) -> frozenset[str]:
        """Ids of the arms whose rule may change the output."""
        return frozenset(arm.id for arm in self._session.arms if arm.lossy)

    def measure_numerics(self, trials: Iterable[Trial], progress: Progress) -> Numerics:
        """How rounding depends on the shape of a forward, on the session's own texts."""
        texts = self.texts.rounding_texts(trials)
        sizes = {arm.num_speculative_tokens + 1 for arm in self._session.arms if arm.kind == "draft"}
        with progress.stage("measure rounding", len(texts)) as stage:
            return measure_numerics(self._target, texts, sorted(sizes), stage)

    def note_unknown_tokens(self, trials: Iterable[Trial]) -> None:
        """Keeps for each draft with a trimmed head or another vocabulary which tokens of the baseline's outputs it can never
        propose."""
        said = {token for trial in trials if trial.arm == BASELINE for token in trial.token_ids}
        for planned in self._plan.drafts:
            opened = self._arms.get(planned.recipe.id)
            if opened is None or opened.proposer is None or opened.arm.draft is None:
                continue
            shared = opened.proposer.known()
            known = known_tokens(planned.folder) if shared is None and planned.folder else shared
            if known is not None:
                share = None if shared is None else len(shared) / self._target.vocabulary_size
                noted = {"unknown_tokens": tuple(sorted(said - known)), "vocabulary_share": share}
                draft = opened.arm.draft.model_copy(update=noted)
                self._take(opened, opened.arm.model_copy(update={"draft": draft}))

    def _decode(self, opened: _OpenArm, request: Request) -> Decoding:
        # A garbage collection in the middle would be charged to whichever arm it happens to hit.
        gc.collect(1)  # a full one walks all that is loaded, which takes longer than many a decode
        gc.disable()
        try:
            if opened.reference is not None:
                return opened.reference.decode(request)
            if opened.proposer is None:
                return autoregressive(self._target, request)
            k = opened.arm.num_speculative_tokens
            return speculative(self._target, opened.proposer, request, k, opened.typical)
        finally:
            gc.enable()

    def _open_arm(self, arm: Arm) -> None:
        if arm.kind == "draft" and arm.draft is None:  # its build failed
            return
        planned = {entry.recipe.id: entry for entry in self._plan.drafts}.get(arm.id)
        before, _ = memory_bytes(self._plan.device)
        reset_peak_memory(self._plan.device)
        try:
            proposer = None
            arm = arm.model_copy(update={"fallback": self._target.fallback})
            if planned is not None:
                proposer = self.propose(planned)
                draft = proposer.runtime()
                if draft is not None and planned.recipe.draft.has_weights:
                    ran = {"backend": draft.name, "dtype": dtype_of(draft, planned.folder)}
                    arm = arm.model_copy(update=ran)
                if draft is not None:
                    arm = arm.model_copy(update={"fallback": draft.fallback})
                # Loading may hold a second copy of the weights for a moment; decoding does not.
                reset_peak_memory(self._plan.device)
            typical = planned.recipe.speculate.typical_acceptance if planned else None
            opened = _OpenArm(arm, proposer, typical, self._open_reference(arm))
            self._warm_up(opened)
            if opened.reference is not None:  # it shares its models with other arms
                self._take(opened, arm)
                return
            sampling = self._check_sampling(opened)
        except Exception as error:
            if arm.kind not in ("draft", "reference"):
                raise
            _log_unforeseen(arm.id, error)
            self._fail(arm, reason_of(error))
            return
        # A small model may fit into memory that the process had before: then nothing was measured.
        peak = self._target_bytes + memory_bytes(self._plan.device)[1] - before
        measured = {"peak_memory_bytes": peak if peak > 0 else None, "sampling": sampling}
        self._take(opened, arm.model_copy(update=measured))

    def propose(self, planned: DraftArm) -> Proposer:
        """A proposer of a built draft, beside the loaded target; raises as the draft's `open`."""
        dtype = planned.dtype or self._plan.dtype
        return planned.recipe.draft.open(
            ProposerContext(
                target=self._target,
                draft_folder=planned.folder,
                target_folder=self._plan.target_folder.path,
                dtype=dtype if is_dtype(dtype) else "fp32",  # a GGUF draft is opened as it is
                device=self._plan.device,
                backend=planned.backend or self._plan.backend,
                stop_below_confidence=planned.recipe.speculate.stop_below_confidence,
                branch_above_probability=planned.recipe.speculate.branch_above_probability,
            )
        )

    def time_forwards(self, progress: Progress) -> None:
        """Times the forwards of all open arms once more, and keeps the mean of all looks."""
        together: dict[tuple[tuple[int, ...], ...], list[_OpenArm]] = defaultdict(list)
        for opened in self._arms.values():
            if opened.reference is None:  # it shares its models with other arms
                together[self._contexts(opened)].append(opened)
        with progress.stage("time forwards", len(self._arms)) as stage:
            for contexts, arms in together.items():
                self._time_together(arms, contexts)
                stage.advance(len(arms))

    def _time_together(self, arms: list[_OpenArm], contexts: Sequence[Sequence[int]]) -> None:
        timed = [(one.draft, one.arm.num_speculative_tokens) for one in arms]
        try:
            looks = measure_latencies(self._target, timed, contexts)
        except ForwardError as error:
            failed = [arms[place] for place in error.arms]
            if any(one.arm.kind != "draft" for one in failed):
                raise error.reason from None
            for one in failed:
                _log_unforeseen(one.arm.id, error.reason)
                self._fail(one.arm, reason_of(error.reason))
            rest = [one for place, one in enumerate(arms) if place not in error.arms]
            self._time_together(rest, contexts)
            return
        for one, look in zip(arms, looks, strict=True):
            latencies = averaged([*one.arm.latencies, *look])
            self._take(one, one.arm.model_copy(update={"latencies": latencies}))

    def _contexts(self, opened: _OpenArm) -> tuple[tuple[int, ...], ...]:
        """In which the arm's forwards are timed."""
        window = opened.draft.context_window if opened.draft is not None else None
        return self.texts.latency_contexts(opened.arm.num_speculative_tokens, window)

    def _take(self, opened: _OpenArm, arm: Arm) -> None:
        opened.arm = arm.model_copy(update={"failure": None})
        self._arms[arm.id] = opened
        self._journal.update_arm(self._session.id, opened.arm)

    def _open_reference(self, arm: Arm) -> GenerateDecoder | None:
        if arm.reference is None:
            return None
        k, beside = arm.num_speculative_tokens, arm.reference.draft
        if beside is None:
            return GenerateDecoder(self._target)
        if arm.reference.method == "assisted":
            opened = self._arms.get(beside)
            draft = opened.draft if opened else None
            if draft is None:
                raise IncompatibleDraftError(f"the draft {beside} did not open")
            if max(needed for _, needed in self._plan.tokens_needed()) > draft.context_window:
                raise IncompatibleDraftError(
                    f"prompts can outgrow the {draft.context_window} tokens that the draft {beside} reads, and "
                    "`generate` would go on asking it"
                )
            return GenerateDecoder(self._target, draft=draft, num_speculative_tokens=k)
        ngram = next(entry.recipe.draft for entry in self._plan.drafts if entry.recipe.id == beside)
        assert isinstance(ngram, NgramDraft)
        return GenerateDecoder(self._target, num_speculative_tokens=k, max_ngram=ngram.max_ngram)

    def _check_sampling(self, opened: _OpenArm) -> SamplingCheck | None:
        """Tests the arm's samples in sampling modes; lossy rules guarantee nothing and are not tested."""
        known = opened.arm.sampling
        if known or self._plan.mode.greedy or opened.proposer is None or opened.typical is not None:
            return known
        entry = self._plan.tasks[0]
        context = self.texts.sampling_context()
        k, place = opened.arm.num_speculative_tokens, (entry.task.id, entry.prompts[0].id)
        return check_sampling(self._target, opened.proposer, context, self._plan.mode, k, place=place)

    def _warm_up_request(self, num_speculative_tokens: int, draft_window: int | None = None) -> Request:
        prompt = self.texts.warm_up_prompt(num_speculative_tokens, draft_window)
        return Request(prompt, self.texts.warm_up_tokens, mode=self._plan.mode)

    def _warm_up(self, opened: _OpenArm) -> None:
        """Lets every shape of forward run once before anything counts, and reads the longest context in which forwards are
        timed, which is part of an arm's peak memory."""
        window = opened.draft.context_window if opened.draft is not None else None
        request = self._warm_up_request(opened.arm.num_speculative_tokens, window)
        self._decode(opened, request)
        if opened.proposer is not None:
            for tokens in range(1, opened.arm.num_speculative_tokens + 2):
                self._target.forward([request.prompt[-1]] * tokens)
                self._target.rollback(tokens)
        reader = self._target if opened.proposer is None else opened.draft
        if reader is not None:
            read_anew(reader, self._contexts(opened)[-1])

    def _fail(self, arm: Arm, reason: str) -> None:
        opened = self._arms.pop(arm.id, None)
        failed = (opened.arm if opened else arm).model_copy(update={"failure": reason})
        self._journal.update_arm(self._session.id, failed)


def _log_unforeseen(arm_id: str, error: Exception) -> None:
    """Shows where an arm failed that nobody foresaw; what was foreseen is a sentence, which the session keeps."""
    if not isinstance(error, DraftrankError):
        _log.warning("arm %s failed", arm_id, exc_info=error)


def _open_target(plan: SessionPlan) -> Runtime:
    if plan.backend == "llama.cpp":
        assert plan.target_file is not None
        return load_gguf_runtime(plan.target_file)
    assert is_dtype(plan.dtype)
    return load_runtime(plan.target_folder.path, plan.dtype, plan.device, plan.backend)
