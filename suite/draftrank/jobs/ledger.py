"""What became of each job of a sweep, on disk: for `draftrank status`, and for whoever asks afterwards.

A folder holds the plan and one line per event; the last event of a job is what is known of it. A line is
written as a whole, so a reader never sees half of one, and a sweep that was killed leaves a true record.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from draftrank.errors import InvalidInputError
from draftrank.jobs.job import Job, JobFacts
from draftrank.jobs.planning import Plan
from draftrank.measure.evidence import utc_now

PLAN, EVENTS, PROCESS = "plan.json", "events.jsonl", "process"
_JOBS: TypeAdapter[tuple[Job, ...]] = TypeAdapter(tuple[Job, ...])


@dataclass(slots=True)
class Ledger:
    """The record of one sweep."""

    folder: Path
    jobs: tuple[Job, ...]
    facts: dict[str, JobFacts] = field(default_factory=dict)

    @classmethod
    def begin(cls, folder: Path, plan: Plan) -> Ledger:
        """Starts the record of a new sweep."""
        folder.mkdir(parents=True)
        (folder / PLAN).write_bytes(_JOBS.dump_json(plan.jobs))
        (folder / PROCESS).write_text(str(os.getpid()))
        return cls(folder, plan.jobs, {job.id: JobFacts() for job in plan.jobs})

    @classmethod
    def read(cls, folder: Path) -> Ledger:
        """The record of a sweep that runs or has ended.

        Raises:
            InvalidInputError: the folder holds none.
        """
        try:
            jobs = _JOBS.validate_json((folder / PLAN).read_bytes())
        except (OSError, ValueError) as error:
            raise InvalidInputError.single(
                "holds no sweep", file=str(folder), fix="`draftrank status` lists those there are"
            ) from error
        ledger = cls(folder, jobs, {job.id: JobFacts() for job in jobs})
        events = folder / EVENTS
        for line in events.read_text(encoding="utf-8").splitlines() if events.is_file() else ():
            event = json.loads(line)
            ledger.facts[event.pop("job")] = JobFacts(**{name: event[name] for name in JobFacts.__slots__})
        return ledger

    def tell(self, job: str, facts: JobFacts) -> None:
        """Keeps what is known of a job now."""
        self.facts[job] = facts
        line = json.dumps({"at": utc_now(), "job": job, **asdict(facts)}, separators=(",", ":"))
        with (self.folder / EVENTS).open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    @property
    def runs(self) -> bool:
        """Whether the process that began it is still there."""
        try:
            os.kill(int((self.folder / PROCESS).read_text()), 0)
        except (OSError, ValueError):
            return False
        return not all(facts.ended for facts in self.facts.values())

    @property
    def counts(self) -> Mapping[str, int]:
        """How many jobs are in each state."""
        return Counter(facts.state for facts in self.facts.values())


def sweeps(state: Path) -> list[Path]:
    """The folders of all sweeps of a workspace, the oldest first."""
    folder = state / "sweeps"
    return sorted(path.parent for path in folder.glob(f"*/{PLAN}")) if folder.is_dir() else []
