"""Jobs on the machines of a Ray cluster: one job to a machine, or to a GPU, so that timings stay honest.

Declarations travel with the job and results travel back; only the driver writes the store. A machine keeps what it
measured in a store of its own, where a later attempt finds it. Ray itself never runs a job again: the driver does, so that
it knows which attempt a result belongs to.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from draftrank.catalog.workspace import Workspace
from draftrank.errors import DraftrankError, InvalidInputError
from draftrank.jobs.job import Ended, Executor, Job
from draftrank.jobs.work import work
from draftrank.progress import SILENT
from draftrank.store.store import Store

_PACKED = ("drafts", "tasks")
MAX_PACKED_BYTES = 64_000_000
"""Declarations with their prompts; more than this is data that belongs into a source."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one job: a machine without GPU, or one GPU of a machine."""

    node: str
    """Ray's id of the machine."""
    gpu: int | None = None


class RayExecutor(Executor):
    """The nodes of a Ray cluster."""

    def __init__(self, workspace: Workspace, address: str, settings: Mapping[str, str] | None = None) -> None:
        """Joins a cluster.

        Args:
            workspace: its declarations are sent along.
            address: of the cluster, as `ray.init` takes it.
            settings: environment variables for the jobs, e.g. where machines share what they build.

        Raises:
            InvalidInputError: Ray is not installed, or there is no cluster at the address.
        """
        try:
            self._ray: Any = import_module("ray")
        except ImportError as error:
            raise InvalidInputError.single(
                "needs Ray", field="--executor", fix="pip install 'draftrank[ray]'"
            ) from error
        if not self._ray.is_initialized():
            try:
                self._ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError) as error:
                raise InvalidInputError.single(
                    f"there is no Ray cluster at {address}: {error}",
                    field="--address",
                    fix="`ray start --head`",
                ) from error
        self._files = self._ray.put(pack(workspace.root))
        self._settings = dict(settings or {})
        self._running: dict[Any, tuple[Job, Slot]] = {}
        self._cancelled: set[str] = set()

    def has_room(self, job: Job) -> bool:
        """Whether a machine, or a GPU where the job computes on one, is free."""
        return self._free_slot(job) is not None

    def start(self, job: Job, attempt: int) -> None:
        slot = self._free_slot(job)
        assert slot is not None
        task = self._ray.remote(
            num_cpus=0,
            num_gpus=0 if slot.gpu is None else 1,
            max_retries=0,
            max_calls=1,  # the next job begins with a process of its own
            scheduling_strategy=import_module(
                "ray.util.scheduling_strategies"
            ).NodeAffinitySchedulingStrategy(slot.node, soft=False),
        )(_work_there)
        self._running[task.remote(job, attempt, self._files, self._settings)] = (job, slot)

    def wait(self, seconds: float) -> list[Ended]:
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        return [self._ended(reference) for reference in ready]

    def cancel(self) -> None:
        for reference, (job, _) in self._running.items():
            self._cancelled.add(job.id)
            self._ray.cancel(reference)

    def close(self) -> None:
        """Ends what still runs; the cluster stays."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running.clear()

    def _free_slot(self, job: Job) -> Slot | None:
        taken = {slot for _, slot in self._running.values()}
        return next((slot for slot in self._slots(job.request.device) if slot not in taken), None)

    def _slots(self, device: str) -> list[Slot]:
        slots: list[Slot] = []
        busy = {slot.node for _, slot in self._running.values() if slot.gpu is None}
        for node in self._ray.nodes():
            if not node["Alive"]:
                continue
            gpus = int(node["Resources"].get("GPU", 0))
            if device == "cuda":
                slots += [Slot(node["NodeID"], gpu) for gpu in range(gpus) if node["NodeID"] not in busy]
            else:
                slots.append(Slot(node["NodeID"]))
        return sorted(slots, key=lambda slot: (slot.node, slot.gpu or 0))

    def _ended(self, reference: Any) -> Ended:
        job, _ = self._running.pop(reference)
        try:
            ended: Ended = self._ray.get(reference)
        except self._ray.exceptions.TaskCancelledError:
            return Ended(job.id, "cancelled", "it was stopped")
        except self._ray.exceptions.RayError as error:
            reason = (
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
            )
            return Ended(job.id, "cancelled" if job.id in self._cancelled else "lost", reason)
        return ended


def pack(root: Path) -> bytes:
    """The declarations of a workspace as a tar file.

    Raises:
        InvalidInputError: they are too large to be sent along.
    """
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as files:
        for name in _PACKED:
            files.add(root / name, name)
    if stream.tell() > MAX_PACKED_BYTES:
        raise InvalidInputError.single(
            f"drafts/ and tasks/ take {stream.tell() / 1e6:.0f} MB, too much to send along",
            file=str(root),
            fix="declare large data by a source",
        )
    return stream.getvalue()


def _work_there(job: Job, attempt: int, files: bytes, settings: dict[str, str]) -> Ended:
    """On the machine: does the job with the machine's store, which keeps a session that is stopped or lost, and returns the
    job's session."""
    base = Path(os.environ.get("DRAFTRANK_STATE") or Path(tempfile.gettempdir()) / "draftrank-node")
    root = base / "workspaces" / hashlib.sha256(files).hexdigest()[:16]
    if not root.is_dir():
        base.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=".workspace-", dir=base))
        with tarfile.open(fileobj=io.BytesIO(files)) as packed:
            packed.extractall(staged, filter="data")
        root.parent.mkdir(exist_ok=True)
        try:
            staged.rename(root)
        except OSError:  # another job of this machine was first
            pass
    os.environ.update(settings)
    workspace = Workspace(root, base / "state")
    with Store.open(workspace.state / "results.sqlite") as store:
        try:
            ended = work(job, workspace, store, SILENT, attempt)
        except DraftrankError as error:
            ended = Ended(job.id, "failed", str(error))
        except KeyboardInterrupt:
            ended = Ended(job.id, "cancelled", "it was stopped")
        return replace(ended, results=(store.result(ended.session),) if ended.session else ())
