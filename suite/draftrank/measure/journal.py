"""What a session needs of the store: to find what it has measured and to keep each new trial."""

from __future__ import annotations

from typing import Protocol

from draftrank.measure.evidence import Numerics
from draftrank.measure.records import Arm, Session, SessionResult, StoppedBy, Trial


class Journal(Protocol):
    """Durable memory of sessions; the results store is one."""

    def find_session(self, plan_sha256: str) -> Session | None:
        """The newest session of this plan."""

    def sessions_of(self, target: str, suite: str) -> tuple[Session, ...]:
        """The sessions of this target and suite, from the oldest to the newest."""

    def begin_session(self, session: Session) -> None:
        """Keeps a new session with its arms and tasks."""

    def add_trial(self, session_id: str, trial: Trial) -> None:
        """Keeps one trial; it is durable when this returns."""

    def trials(self, session_id: str) -> tuple[Trial, ...]:
        """Every trial kept so far."""

    def update_arm(self, session_id: str, arm: Arm) -> None:
        """Replaces what is known of one arm."""

    def judge_trial(self, session_id: str, trial: Trial) -> None:
        """Keeps the judgement of a trial that was added before."""

    def set_numerics(self, session_id: str, numerics: Numerics) -> None:
        """Keeps how rounding depends on the shape of a forward."""

    def finish_session(self, session_id: str, finished_at: str, stopped_by: StoppedBy | None = None) -> None:
        """Marks the session as complete, and says what ended it."""

    def result(self, session_id: str) -> SessionResult:
        """The session with its trials."""
