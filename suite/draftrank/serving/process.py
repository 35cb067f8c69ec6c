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
from contextlib import contextmanager
from pathlib import Path

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
) -> Iterator[Client]:
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
    try:
        client = Client(port, idle_s=idle_s)
        _wait(client, process, name, start_s)
        yield client
    except ServerError as error:
        code = process.poll()
        ended = "" if code is None else f"\nits process has ended with code {code}"
        raise ServerError(f"{error}{ended}\nlast lines of {log}:\n{_tail(log)}") from error
    finally:
        _end(process)


def _wait(client: Client, process: subprocess.Popen[bytes], name: str, start_s: float) -> None:
    until = time.monotonic() + start_s
    while not _is_ready(client):
        if process.poll() is not None:
            raise ServerError("the server ended before it was ready")
        if time.monotonic() > until:
            raise ServerError(f"the server was not ready after {start_s:g} s")
        time.sleep(_LOOK_S)
    listed = asyncio.run(client.json("/v1/models"))
    try:
        models = [str(entry["id"]) for entry in listed["data"]]
    except (KeyError, TypeError) as error:
        raise ServerError("/v1/models does not list models: another program listens on its port") from error
    if name not in models:
        raise ServerError(
            f"it serves {', '.join(models) or 'nothing'} and not {name}: another server listens on its port"
        )


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
