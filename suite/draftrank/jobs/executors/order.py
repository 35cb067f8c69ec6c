"""What an isolated process is told and what it tells, each a JSON file of the sweep's folder."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

STOPPED = 130
"""Exit code of a job that was asked to stop and did."""


class Order(BaseModel):
    """What a worker is told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: str
    """The job, as `Job.to_json` writes it."""
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


class Answer(BaseModel):
    """What a worker tells."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    done: bool
    reason: str | None = None
    """Why it is not done."""
    session: str | None = None
    """Of a session: its id."""
    built: Path | None = None
    """Of a build: the draft's folder."""
