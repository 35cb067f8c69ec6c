"""Runs a plan: what may run next, what to try again, and that no result counts twice."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from draftrank.errors import StoreError
from draftrank.jobs.job import Ended, Executor, Job, JobFacts
from draftrank.jobs.ledger import Ledger
from draftrank.progress import Progress
from draftrank.store.store import Store

ATTEMPTS = 3
"""How often a job is tried whose process or machine died."""
_WAIT_S = 0.5


def execute(ledger: Ledger, executor: Executor, store: Store, progress: Progress) -> None:
    """Runs the jobs of a ledger until none is left that can run; the ledger says what became of each.

    Ctrl-C stops what runs at its next safe point, keeps what it measured, and is raised again.

    Args:
        ledger: the plan's jobs, none of them begun.
        executor: where they run; closed by the caller.
        store: gets results of jobs that could not write it themselves.
    """
    sweep = _Sweep(ledger, executor, store, progress)
    with progress.stage("jobs", len(ledger.jobs)) as stage:
        sweep.on_end = lambda job: stage.advance(note=job)
        try:
            while sweep.step():
                pass
        except KeyboardInterrupt:
            progress.message("stopping: the running job ends at its next safe point")
            sweep.stop()
            raise


class _Sweep:
    """A plan under way."""

    def __init__(self, ledger: Ledger, executor: Executor, store: Store, progress: Progress) -> None:
        self._ledger, self._executor, self._store, self._progress = ledger, executor, store, progress
        self._began: dict[str, float] = {}
        self.on_end: Callable[[str], None] = lambda _: None

    def step(self) -> bool:
        """Starts what can be started and takes in what has ended; False once nothing is left."""
        self._skip_the_hopeless()
        for job in self._ledger.jobs:
            if (
                self._facts(job.id).state == "waiting"
                and self._may_start(job)
                and self._executor.has_room(job)
            ):
                self._start(job)
        for ended in self._executor.wait(_WAIT_S):
            self._take(ended)
        return any(not facts.ended for facts in self._ledger.facts.values())

    def stop(self) -> None:
        """Ends running jobs and marks all that did not end as cancelled."""
        self._executor.cancel()
        until = time.monotonic() + 60.0
        while self._began and time.monotonic() < until:
            for ended in self._executor.wait(_WAIT_S):
                self._take(ended, final=True)
        for job in self._ledger.jobs:
            facts = self._facts(job.id)
            if not facts.ended:
                self._ledger.tell(job.id, replace(facts, state="cancelled", reason="the sweep was stopped"))

    def _facts(self, job: str) -> JobFacts:
        return self._ledger.facts[job]

    def _may_start(self, job: Job) -> bool:
        return all(self._facts(one).state == "done" for one in job.needs) and all(
            self._facts(one).ended for one in job.after
        )

    def _skip_the_hopeless(self) -> None:
        for job in self._ledger.jobs:
            if self._facts(job.id).state != "waiting":
                continue
            missing = [
                one for one in job.needs if self._facts(one).ended and self._facts(one).state != "done"
            ]
            if missing:
                reason = f"{missing[0]} did not succeed"
                self._ledger.tell(job.id, replace(self._facts(job.id), state="skipped", reason=reason))
                self._progress.message(f"{job.id}: skipped, {reason}")
                self.on_end(job.id)

    def _start(self, job: Job) -> None:
        facts = replace(self._facts(job.id), state="running", attempts=self._facts(job.id).attempts + 1)
        started = replace(job, unbuilt=tuple(self._unbuilt(job)))
        with _undisturbed():  # a job that has begun must be known, or nobody could end it
            self._ledger.tell(job.id, facts)
            self._began[job.id] = time.monotonic()
            self._executor.start(started, facts.attempts)

    def _unbuilt(self, job: Job) -> Iterator[tuple[str, str]]:
        """The drafts of a session whose builds ended badly: it goes on without them."""
        for build in self._ledger.jobs:
            facts = self._facts(build.id)
            if build.id in job.after and build.draft is not None and facts.state != "done":
                yield build.draft, facts.reason or facts.state

    def _take(self, ended: Ended, *, final: bool = False) -> None:
        began = self._began.pop(ended.job, None)
        if began is None:  # told twice, e.g. by a node that came back: the first word counted
            return
        facts = self._facts(ended.job)
        facts = replace(facts, seconds=facts.seconds + time.monotonic() - began, reason=ended.reason)
        if ended.end == "done":
            try:
                for result in ended.results:
                    self._store.join_result(result)
            except StoreError as error:
                ended = Ended(ended.job, "failed", str(error))
        if ended.end == "lost" and facts.attempts < ATTEMPTS and not final:
            self._progress.message(f"{ended.job}: {ended.reason}; it is tried again")
            self._ledger.tell(ended.job, replace(facts, state="waiting"))
            return
        state = "failed" if ended.end == "lost" else ended.end
        self._ledger.tell(ended.job, replace(facts, state=state, reason=ended.reason, session=ended.session))
        self._progress.message(f"{ended.job}: {state}" + (f", {ended.reason}" if ended.reason else ""))
        self.on_end(ended.job)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C waits until the end."""
    alone = threading.current_thread() is threading.main_thread()  # it interrupts no other
    if not alone or signal.getsignal(signal.SIGINT) is None:  # None: not Python's to put back
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        signal.raise_signal(signal.SIGINT)
