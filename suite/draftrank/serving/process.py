"""A server as a process of ours: started on a free port of this machine, waited for, and ended with all its children."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from draftrank.serving.http import Client, ServerError

_GRACE_S = 15.0
"""Seconds that a server gets to end by itself."""
_LOOK_S = 0.25
_TAIL_LINES = 25
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """In the new process: it is asked to end when the one that started it was killed."""
    assert _LIBC is not None
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def free_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """A server that was started here, with all the processes that it started."""

    def __init__(self, process: subprocess.Popen[bytes], client: Client, log: Path) -> None:
        self._process, self._log = process, log
        self.client = client
        """Talks to it."""

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def ended(self, why: str) -> ServerError:
        """An error that tells how its process ended, where it has, with the end of its log."""
        code = self._process.poll()
        reason = why if code is None else f"{why}\nits process has ended with code {code}"
        tail = _tail(self._log)
        return ServerError(f"{reason}\nlast lines of {self._log}:\n{tail}", reason=reason, log_tail=tail)

    def pause(self) -> None:
        """Stops all its processes where they are, so that they take no processor; their sockets stay open."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets them go on."""
        self._signal(signal.SIGCONT)

    def cpu_s(self) -> float:
        """Processor seconds that its processes have taken."""
        return sum(_cpu_s(one) for one in self._family())

    def memory_bytes(self) -> int:
        """Memory that they hold, shared pages counted once where the system tells them apart."""
        return sum(_memory_bytes(one) for one in self._family())

    def _family(self) -> list[psutil.Process]:
        try:
            first = psutil.Process(self._process.pid)
            return [first, *first.children(recursive=True)]
        except psutil.Error:
            return []

    def _signal(self, number: int) -> None:
        """Whole process groups: its own, and those that its children have made."""
        for group in {self._process.pid, *filter(None, map(_group, self._family()))} - {os.getpgrp()}:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, number)


@contextmanager
def running(
    command: Sequence[str],
    port: int,
    log: Path,
    *,
    name: str,
    environment: Mapping[str, str] | None = None,
    start_s: float = 600.0,
    idle_s: float = 300.0,
) -> Iterator[ServerProcess]:
    """Starts a server, waits until it is ready, and ends it with its process group at the end.

    Args:
        command: starts it, listening on `port` of 127.0.0.1.
        port: a free one.
        log: gets its output; added to.
        name: the model's name that it must list under `/v1/models`, so that no other server is taken for it.
        environment: variables beside those of this process.
        start_s: seconds after which it must be ready.
        idle_s: see `Client`.

    Raises:
        ServerError: it ends, is not ready in time, or serves another model; from within, too: with the end of its log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        try:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env={**os.environ, **(environment or {})},
                start_new_session=True,  # a process group of its own: it may start more processes
                preexec_fn=_end_with_parent if _LIBC is not None else None,
            )
        except OSError as error:
            raise ServerError(f"{command[0]} cannot be started: {error.strerror or error}") from error
    guard = _guard(process)
    server = ServerProcess(process, Client(port, idle_s=idle_s), log)
    try:
        _wait(server.client, process, name, start_s)
        server.client.model = name
        yield server
    except ServerError as error:
        raise server.ended(str(error)) from error
    finally:
        _end(process)
        guard.kill()
        guard.communicate()


def _guard(process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """A shell that waits until this process has ended, in whatever way, and then kills the server's group: a server that
    is paused hears nothing else."""
    return subprocess.Popen(
        ["/bin/sh", "-c", 'read _; kill -9 "-$1"', "sh", str(process.pid)],
        stdin=subprocess.PIPE,  # which closes when this process ends
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _group(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid)
    except OSError:
        return None


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def _memory_bytes(process: psutil.Process) -> int:
    try:
        found = process.memory_full_info()
        return int(getattr(found, "pss", 0) or found.rss)
    except psutil.Error:
        return 0


def _wait(client: Client, process: subprocess.Popen[bytes], name: str, start_s: float) -> None:
    until = time.monotonic() + start_s
    while not _is_ready(client):
        if process.poll() is not None:
            raise ServerError("the server ended before it was ready")
        if time.monotonic() > until:
            raise ServerError(f"the server was not ready after {start_s:g} s")
        time.sleep(_LOOK_S)
    models = asyncio.run(client.models())
    if name not in models:
        raise ServerError(f"it serves {', '.join(models)} and not {name}: another server listens on its port")


def _is_ready(client: Client) -> bool:
    try:
        asyncio.run(client.text("/health"))
    except ServerError:
        return False
    return True


def _tail(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").splitlines()
    return "\n".join(lines[-_TAIL_LINES:])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the whole process group: its leader's children too, where that has ended without them."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            os.killpg(process.pid, signal.SIGCONT)  # one that is paused hears of it only then
        except (ProcessLookupError, PermissionError):
            break
        until = time.monotonic() + _GRACE_S
        while time.monotonic() < until:
            process.poll()  # takes the leader's exit code, so that its group can vanish
            try:
                os.killpg(process.pid, 0)
            except (ProcessLookupError, PermissionError):
                break
            time.sleep(0.05)
    process.wait()
