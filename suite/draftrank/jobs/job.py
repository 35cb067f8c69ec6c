"""A job: one piece of a sweep that runs as a whole, anywhere, and can run again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from draftrank.jobs.session import RunRequest
from draftrank.measure.records import SessionResult

JobKind = Literal["fetch", "build", "session"]


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of work; plain data, so that another process or machine can take it."""

    id: str
    """Unique in its plan, and telling: `build smollm2/ngram`."""
    kind: JobKind
    """`fetch`: everything from elsewhere, the only job that needs a network; `build`: one draft; `session`: the
    measuring, alone on its machine."""
    request: RunRequest
    """The session it belongs to."""
    draft: str | None = None
    """Of a build: the draft's id."""
    needs: tuple[str, ...] = ()
    """Ids of jobs that must have succeeded before."""
    after: tuple[str, ...] = ()
    """Ids of jobs that must have ended before, well or not: a session goes on without a draft that failed."""
    estimate_s: float | None = None
    """Seconds it is expected to take; None: nobody knows."""
    unbuilt: tuple[tuple[str, str], ...] = ()
    """Of a session that starts: the drafts whose builds ended badly, each with the reason."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How one attempt at a job ended."""

    job: str
    end: Literal["done", "failed", "lost", "cancelled"]
    """`failed`: it would fail again; `lost`: the process or its machine died, another attempt may succeed."""
    reason: str | None = None
    """Why it is not done."""
    session: str | None = None
    """Of a session: its id."""
    built: Path | None = None
    """Of a build: the draft's folder on the machine it ran on."""
    results: tuple[SessionResult, ...] = ()
    """What it measured, where it could not write the store itself."""


@dataclass(frozen=True, slots=True)
class JobFacts:
    """What is known of a job while a sweep runs and after."""

    state: Literal["waiting", "running", "done", "failed", "skipped", "cancelled"] = "waiting"
    """`skipped`: a job that it needs did not succeed."""
    attempts: int = 0
    reason: str | None = None
    """Why it is not done, or why it was tried again."""
    seconds: float = 0.0
    """Time of all attempts together."""
    session: str | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more happens to it."""
        return self.state not in ("waiting", "running")


class Executor(Protocol):
    """Where jobs run. Only `execute` calls it, from one thread."""

    def has_room(self, job: Job) -> bool:
        """Whether the job may be started now without disturbing one that runs."""

    def start(self, job: Job, attempt: int) -> None:
        """Begins a job and returns at once, or when it has ended."""

    def wait(self, seconds: float) -> list[Ended]:
        """The jobs that ended since the last call; waits so long for the first at most."""

    def cancel(self) -> None:
        """Asks running jobs to end at their next safe point; `wait` still tells of each."""

    def close(self) -> None:
        """Ends what still runs, and gives back what was taken."""
