"""One session: a target, its baseline twice, and any number of drafts, measured side by side.

The session decides what is run and in which order, hands every finished trial to the journal before
the next begins, and resumes an interrupted run of the same plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING

from draftrank.measure.evidence import utc_now
from draftrank.measure.fidelity.numerics import needs_numerics
from draftrank.measure.gates.clocks import pause_within
from draftrank.measure.journal import Journal
from draftrank.measure.machine.disturbance import disturbance_of
from draftrank.measure.machine.fingerprint import read_machine
from draftrank.measure.records import (
    BASELINE,
    CONTROL,
    Session,
    SessionResult,
    StoppedBy,
    Trial,
)
from draftrank.measure.sessions.judging import judge_block
from draftrank.measure.sessions.plan import SessionPlan, new_session
from draftrank.measure.sessions.schedule import Block, cell_of, schedule
from draftrank.measure.statistics.standing import standing_trials
from draftrank.measure.statistics.stopping import reason_to_stop, spent_s
from draftrank.progress import SILENT, Progress, Stage

if TYPE_CHECKING:
    from draftrank.measure.sessions.bench import Bench

ATTEMPTS = 3
"""Maximum of attempts at a prompt turn while the machine is disturbed. One more follows at the end of the repeats, if the
machine has become calm."""
PATIENCE_BLOCKS = 4
"""Prompt turns that stayed disturbed, after which none is decoded again until the end of the repeats."""
PAUSE_S = 10.0
"""Longest wait before another attempt for the disturbance to pass."""
TIME_AGAIN_S = 600.0
"""Seconds after which forwards are timed again, besides at the session's beginning and end."""
TIME_AT_END_S = 300.0
"""A session that ends sooner after they were timed is not worth another look."""


def run_session(
    plan: SessionPlan, journal: Journal, *, fresh: bool = False, progress: Progress = SILENT
) -> SessionResult:
    """Measures a plan, or continues or returns what the journal already has of it; if `fresh`, measures it anew in any
    case.

    Raises:
        ContextOverflowError: a prompt does not fit the target's window; nothing has been measured.
    """
    from draftrank.measure.sessions.bench import Bench

    machine = read_machine(plan.device)
    plan_sha256 = plan.sha256(machine)
    session = None if fresh else _to_reuse(plan, journal.find_session(plan_sha256))
    if session is not None and session.finished_at is not None:
        progress.message(f"session {session.id} has measured this already; nothing to do")
        return journal.result(session.id)
    for warning in plan.short_windows:
        progress.message(warning)
    bench = Bench.load(plan, progress)
    if session is None:
        session = new_session(plan, plan_sha256, machine)
        journal.begin_session(session)
    else:
        progress.message(f"session {session.id} resumes")
    done = {trial.key: trial for trial in journal.trials(session.id)}
    process = 1 + max((trial.process for trial in done.values()), default=-1)
    bench.open_arms(session, journal, progress, resumed=bool(done))
    stopped_by = _Measuring(session, bench, done, process, journal, progress).measure()
    bench.note_unknown_tokens(done.values())
    if session.numerics is None and needs_numerics(session):
        journal.set_numerics(session.id, bench.measure_numerics(done.values(), progress))
    journal.finish_session(session.id, utc_now(), stopped_by)
    return journal.result(session.id)


def _to_reuse(plan: SessionPlan, found: Session | None) -> Session | None:
    """A session of the same plan, unless it holds only part of its arms (an imported bundle), or has
    ended with an arm that failed though its draft was built: that one deserves another try."""
    if found is None or {arm.id for arm in found.arms} != {
        BASELINE,
        CONTROL,
        *(arm.recipe.id for arm in plan.drafts),
        *(arm.id for arm in plan.references),
    }:
        return None
    broke = any(arm.failure is not None and arm.draft is not None for arm in found.arms)
    return None if broke and found.finished_at is not None else found


Trials = dict[tuple[str, str, str, int, int, int], Trial]


@dataclass(slots=True)
class _Measuring:
    """A session under way in this process."""

    session: Session
    bench: Bench
    done: Trials
    """Every trial so far, by its key; grows."""
    process: int
    journal: Journal
    progress: Progress
    disturbed: int = 0
    """Prompt turns that stayed disturbed since patience was fresh."""
    timed_at: float = field(default_factory=monotonic)
    """When forwards were timed last, on the monotonic clock."""
    decoded: bool = False
    """Whether anything was decoded since."""

    def measure(self) -> StoppedBy:
        """Measures repeat after repeat until it is enough; see `stopping`."""
        reason = self._decode_enough()
        self._time_forwards(TIME_AT_END_S)
        return reason

    def _decode_enough(self) -> StoppedBy:
        session = self.session
        required = [block for repeat in range(session.repeats) for block in self._blocks(repeat)]
        with self.progress.stage("measure", sum(len(block.arms) for block in required)) as stage:
            for block in required:
                self._measure_block(block, stage)
                self._time_forwards(TIME_AGAIN_S)
        self._mend(required)
        for repeat in count(session.repeats):
            trials = self.done.values()
            reason = reason_to_stop(session, standing_trials(trials), spent_s(trials), self._working())
            if reason is not None:
                return reason
            blocks = self._blocks(repeat)
            with self.progress.stage(f"repeat {repeat + 1}", sum(len(b.arms) for b in blocks)) as stage:
                for block in blocks:
                    if session.budget_s is not None and spent_s(self.done.values()) >= session.budget_s:
                        return "budget"
                    self._measure_block(block, stage)
                    self._time_forwards(TIME_AGAIN_S)
        raise AssertionError("unreachable: repeats never end by themselves")

    def _time_forwards(self, after_s: float) -> None:
        """Times forwards again if something was decoded since, and it is that long ago."""
        now = monotonic()
        if self.decoded and now - self.timed_at > after_s:
            self.bench.time_forwards(self.progress)
            self.timed_at, self.decoded = monotonic(), False

    def _working(self) -> set[str]:
        return {arm.id for arm in self.session.arms if self.bench.works(arm.id)}

    def _blocks(self, repeat: int) -> list[Block]:
        session = self.session
        return list(schedule(session.tasks, [arm.id for arm in session.arms], repeat, session.seed))

    def _measure_block(self, block: Block, stage: Stage) -> None:
        """Lets all arms decode one prompt turn, again while the machine is disturbed."""
        begun = self._attempts_begun(block)
        # On a machine that is never quiet, repeating everything would only make the session longer.
        last = max(begun, ATTEMPTS - 1 if self.disturbed < PATIENCE_BLOCKS else 0)
        for attempt in range(begun, last + 1):
            reason = self._attempt(block, attempt, stage if attempt == begun else None)
            if reason is None:
                return
            if attempt < last:
                self._announce(block, reason)
                self._is_calm()
        self.disturbed += 1

    def _mend(self, blocks: Sequence[Block]) -> None:
        """Decodes once more what stayed disturbed, in case the machine has become calm since."""
        left = [(block, reason) for block in blocks if (reason := self._disturbance(block)) is not None]
        self.disturbed = 0
        if not left or not self._is_calm():
            return
        with self.progress.stage("measure what was disturbed", sum(len(b.arms) for b, _ in left)) as stage:
            for block, reason in left:
                self._announce(block, reason)
                if self._attempt(block, self._attempts_begun(block) + 1, stage) is not None:
                    self.disturbed += 1
                    if self.disturbed >= PATIENCE_BLOCKS or not self._is_calm():
                        return

    def _announce(self, block: Block, reason: str) -> None:
        place = "/".join(map(str, cell_of(self.session, block)))
        self.progress.message(f"{place} is decoded again: {reason}")

    def _is_calm(self) -> bool:
        """Whether the machine becomes calm in a while."""
        return self.bench.watch is None or self.bench.watch.wait_for_calm(PAUSE_S)

    def _attempts_begun(self, block: Block) -> int:
        cell = cell_of(self.session, block)
        return max((key[-1] for key in self.done if key[1:-1] == cell), default=0)

    def _attempt(self, block: Block, attempt: int, stage: Stage | None) -> str | None:
        """Lets every arm decode a prompt turn that has not yet done so in this attempt, and judges the
        outputs; returns what disturbed them."""
        cell = cell_of(self.session, block)
        task = self.session.tasks[block.task]
        answers = _answers_so_far(self.session, block, self.done)
        if attempt and self.bench.watch is not None:
            self.bench.watch.start_anew()
        for position, arm in enumerate(block.arms):
            if self.bench.works(arm) and (arm, *cell, attempt) not in self.done:
                trial = self.bench.decode(arm, block, position, answers, self.process, attempt)
                self.decoded = True
                if trial is not None:
                    self.journal.add_trial(self.session.id, trial)
                    self.done[trial.key] = trial
            if stage is not None:
                place = f"{block.prompt + 1} of {len(task.prompts)}"
                stage.advance(note=f"{task.task} {place} · {arm}")
        for judged in judge_block(self.bench, block, answers, self._trials(block)):
            self.journal.judge_trial(self.session.id, judged)
            self.done[judged.key] = judged
        return self._disturbance(block)

    def _disturbance(self, block: Block) -> str | None:
        """What disturbed the attempt that stands."""
        trials = standing_trials(self._trials(block))
        found = disturbance_of((trial.conditions for trial in trials), self.session.machine.cores)
        if found is not None:
            return found.reason
        # Nobody can tell whether the stopwatch missed it, so a session that watches decodes again, before a gate asks.
        pause = None if self.bench.watch is None else pause_within(trials)
        return None if pause is None else f"{pause:.2f} s passed unseen between two of its trials"

    def _trials(self, block: Block) -> list[Trial]:
        cell = cell_of(self.session, block)
        return [trial for key, trial in self.done.items() if key[1:-1] == cell]


def _answers_so_far(session: Session, block: Block, done: Trials) -> tuple[tuple[int, ...], ...]:
    """The target's own answers to the earlier turns: every arm goes on from the same context."""
    task = session.tasks[block.task]
    found = []
    for turn in range(block.turn):
        # The first one's, so that all repeats ask the same question, also in sampling modes.
        trial = done[(BASELINE, task.task, task.prompts[block.prompt], turn, 0, 0)]
        found.append(trial.token_ids)
    return tuple(found)
