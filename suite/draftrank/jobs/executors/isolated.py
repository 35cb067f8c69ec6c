"""Each job in a process of its own, one at a time: what it does to itself, it does to nobody else.

A crash, too much memory or a hang ends the job and not the sweep. Where the system allows it, a process
has no network once everything is fetched.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, TypeAdapter

from draftrank.building.shared_drafts import give_shared
from draftrank.catalog.workspace import Workspace
from draftrank.jobs.job import Ended, Executor, Job
from draftrank.measure.records import SessionResult
from draftrank.progress import SILENT, Progress
from draftrank.store.store import Store

WORKER = "draftrank.cli.worker"
STOPPED = 130
"""Exit code of a job that was asked to stop and did."""
ENDED: TypeAdapter[Ended] = TypeAdapter(Ended)
"""Writes and reads what a worker tells."""
_LOOK_S = 0.2
"""Seconds between two looks at a running job."""
_GRACE_S = 30.0
"""Seconds that a job has to end itself once it was asked to."""


class Order(BaseModel):
    """What a worker is told, as a JSON file of the sweep's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: Job
    attempt: int
    """Counts from 1."""
    workspace: Path
    """Its root."""
    state: Path
    """Where its caches lie, unless the environment names others."""
    store: str
    """The results store to write to; never the address of a server, which a job could not reach."""
    answer: Path
    """Where the outcome goes."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one job may take; None: as much as there is."""

    memory_bytes: int | None = None
    """Resident memory of the job's processes together."""
    seconds: float | None = None
    """Time from its start to its end."""


@dataclass(slots=True)
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    answer: Path
    log: Path
    began: float
    killed_for: str | None = None
    cancelled: bool = False


class IsolatedExecutor(Executor):
    """At most one job at a time: two would spoil each other's times."""

    def __init__(
        self,
        workspace: Workspace,
        folder: Path,
        limits: Limits | None = None,
        progress: Progress = SILENT,
    ) -> None:
        """Prepares to run jobs.

        Args:
            workspace: where declarations and caches lie, and the results store that each job writes itself.
            folder: for orders, answers and one log per attempt.
            progress: told when a draft is shared.
        """
        self._workspace, self._folder = workspace, folder
        self._limits = limits or Limits()
        self._progress = progress
        self._running: _Running | None = None
        folder.mkdir(parents=True, exist_ok=True)
        # Without network no job reaches a server: it measures into a file, and the driver hands that on.
        local = workspace.has_local_store
        self._file = workspace.store_url if local else str(workspace.state / "results.sqlite")
        self._hands_on = not local

    def has_room(self, job: Job) -> bool:
        """Whether nothing runs."""
        return self._running is None

    def start(self, job: Job, attempt: int) -> None:
        name = f"{_file_name(job.id)}.{attempt}"
        answer, order, log = (
            self._folder / f"{name}.{kind}" for kind in ("answer.json", "order.json", "log")
        )
        answer.unlink(missing_ok=True)
        told = Order(
            job=job,
            attempt=attempt,
            workspace=self._workspace.root,
            state=self._workspace.state,
            store=self._file,
            answer=answer,
        )
        order.write_text(told.model_dump_json(), encoding="utf-8")
        command = [sys.executable, "-m", WORKER, str(order)]
        environment = dict(os.environ)
        if job.kind != "fetch":
            command = [*without_network(), *command]
            environment["DRAFTRANK_OFFLINE"] = "1"
        with log.open("ab") as stream:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches it through `cancel` alone
                preexec_fn=_listen_to_ctrl_c,
            )
        self._running = _Running(job, process, answer, log, time.monotonic())

    def wait(self, seconds: float) -> list[Ended]:
        until = time.monotonic() + seconds
        while (running := self._running) is not None:
            if running.process.poll() is not None:
                self._running = None
                return [self._ended(running)]
            self._hold_to_limits(running)
            left = until - time.monotonic()
            if left <= 0:
                break
            time.sleep(min(_LOOK_S, left))
        return []

    def cancel(self) -> None:
        if self._running is not None and self._running.process.poll() is None:
            self._running.cancelled = True
            self._running.process.send_signal(signal.SIGINT)

    def close(self) -> None:
        """Ends what still runs: first by asking."""
        running = self._running
        if running is None or running.process.poll() is not None:
            return
        self.cancel()
        try:
            running.process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            _kill(running.process)

    def _hold_to_limits(self, running: _Running) -> None:
        if running.killed_for is not None:
            return
        limits = self._limits
        if limits.seconds is not None and time.monotonic() - running.began > limits.seconds:
            running.killed_for = f"it took more than {limits.seconds:.0f} s"
        elif (
            limits.memory_bytes is not None
            and (used := _memory_bytes(running.process.pid)) > limits.memory_bytes
        ):
            running.killed_for = (
                f"it took {used / 2**30:.1f} GiB of memory, more than {limits.memory_bytes / 2**30:.1f}"
            )
        if running.killed_for is not None:
            _kill(running.process)

    def _ended(self, running: _Running) -> Ended:
        code, job = running.process.returncode, running.job.id
        if running.killed_for is not None:
            return Ended(job, "failed", f"{running.killed_for} (log: {running.log})")
        if running.answer.is_file():
            ended = ENDED.validate_json(running.answer.read_bytes())
            if ended.built is not None:
                give_shared(self._workspace.fetch_context(), ended.built, self._progress)
            return replace(ended, results=self._to_hand_on(ended.session))
        if running.cancelled or code == STOPPED:
            return Ended(job, "cancelled", "it was stopped")
        return Ended(job, "lost", f"{_fate(code)} (log: {running.log})")

    def _to_hand_on(self, session: str | None) -> tuple[SessionResult, ...]:
        if session is None or not self._hands_on:
            return ()
        with Store.open(self._file) as store:
            return (store.result(session),)


@lru_cache(maxsize=1)
def without_network() -> tuple[str, ...]:
    """The words before a command that take its network away; none where the system does not allow it."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return ()
    words = (unshare, "--user", "--map-current-user", "--net")
    try:
        tried = subprocess.run([*words, "true"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return ()
    return words if tried.returncode == 0 else ()


def _fate(code: int) -> str:
    if code >= 0:
        return f"its process ended with code {code} and no answer"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
    hint = ", often a lack of memory" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"


def _memory_bytes(pid: int) -> int:
    try:
        first = psutil.Process(pid)
        return sum(_resident(one) for one in (first, *first.children(recursive=True)))
    except psutil.Error:
        return 0


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it started: they share a process group of its own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()


def _listen_to_ctrl_c() -> None:
    """A sweep in the background inherits an ignored SIGINT, and would hand it on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _file_name(job: str) -> str:
    readable = "".join(one if one.isalnum() or one in "-." else "-" for one in job)[:80]
    return f"{readable}-{sha256(job.encode()).hexdigest()[:8]}"
