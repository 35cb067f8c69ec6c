"""Jobs in this process, one after the other: the least machinery, and no protection."""

from __future__ import annotations

from draftrank.catalog.workspace import Workspace
from draftrank.errors import DraftrankError
from draftrank.jobs.job import Ended, Executor, Job
from draftrank.jobs.work import work
from draftrank.measure.journal import Journal
from draftrank.progress import Progress


class InlineExecutor(Executor):
    """A job has ended when `start` returns, and one that crashes takes the sweep along."""

    def __init__(self, workspace: Workspace, journal: Journal, progress: Progress) -> None:
        self._workspace, self._journal, self._progress = workspace, journal, progress
        self._ended: list[Ended] = []

    def has_room(self, job: Job) -> bool:
        """Always: the one before has ended."""
        return True

    def start(self, job: Job, attempt: int) -> None:
        """Does the job."""
        try:
            self._ended.append(work(job, self._workspace, self._journal, self._progress, attempt))
        except DraftrankError as error:
            self._ended.append(Ended(job.id, "failed", str(error)))

    def wait(self, seconds: float) -> list[Ended]:
        ended, self._ended = self._ended, []
        return ended

    def cancel(self) -> None:
        """Nothing runs between calls."""

    def close(self) -> None:
        """Nothing is held."""
