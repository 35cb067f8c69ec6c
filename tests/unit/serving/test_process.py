"""Servers as processes: ready, named, ended, and told of when they are not."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from draftrank.serving.base import CompletionRequest
from draftrank.serving.http import Client, ServerError
from draftrank.serving.process import free_port, running
from draftrank.serving.vllm import Vllm
from model_server import output_of

SERVER = Path(__file__).parents[2] / "model_server.py"


def command(port: int, fault: str = "", form: str = "vllm") -> list[str]:
    return [sys.executable, str(SERVER), form, fault, "--port", str(port)]


def test_a_server_answers_and_its_group_ends_with_it(tmp_path: Path) -> None:
    port, pids = free_port(), tmp_path / "pids"
    # A shell that starts another process and then the server: both must go.
    script = f"sleep 600 & echo $! $$ > {pids}; exec {' '.join(repr(word) for word in command(port))}"
    with running(["sh", "-c", script], port, tmp_path / "log", name="draftrank") as server:
        request = CompletionRequest((1, 2), 6, frozenset())
        found = asyncio.run(Vllm(Path("python")).complete(server.client, request))
        assert found.token_ids == tuple(output_of([1, 2], 6))
    for pid in map(int, pids.read_text().split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert "listening" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("ends at once", "ended before it was ready"),
        ("never ready", "not ready after 1 s"),
        ("wrong model", "serves another and not draftrank"),
    ],
)
def test_a_server_that_does_not_come_up_is_told_with_its_log(tmp_path: Path, fault: str, told: str) -> None:
    port, log = free_port(), tmp_path / "log"
    start_s = 1.0 if fault == "never ready" else 30.0
    with (
        pytest.raises(ServerError, match=told) as error,
        running(command(port, fault), port, log, name="draftrank", start_s=start_s),
    ):
        pass
    assert ("no weights here" if fault == "ends at once" else "listening") in str(error.value)


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerError, match="cannot be started"),
        running(["/no/such/server"], free_port(), tmp_path / "log", name="draftrank"),
    ):
        pass


def test_a_server_that_dies_in_the_middle_is_told_with_its_exit_code(tmp_path: Path) -> None:
    port = free_port()
    with (
        pytest.raises(ServerError, match=r"broke off[\s\S]*ended with code 7[\s\S]*listening"),
        running(command(port, "dies"), port, tmp_path / "log", name="draftrank") as server,
    ):
        _ask(server.client)


def test_a_paused_server_takes_no_processor_goes_on_where_it_was_and_can_be_ended(tmp_path: Path) -> None:
    port, pids = free_port(), tmp_path / "pids"
    script = f"sleep 600 & echo $! $$ > {pids}; exec {' '.join(repr(word) for word in command(port))}"
    with running(["sh", "-c", script], port, tmp_path / "log", name="draftrank") as server:
        family = [psutil.Process(pid) for pid in map(int, pids.read_text().split())]
        server.pause()
        while {process.status() for process in family} != {"stopped"}:  # on a busy machine not at once
            time.sleep(0.01)
        before = server.cpu_s()
        with pytest.raises(ServerError, match="nothing came for"):
            asyncio.run(Client(port, idle_s=0.2).text("/health"))
        assert server.cpu_s() == before > 0
        assert server.memory_bytes() > 1 << 20
        server.resume()
        request = CompletionRequest((1, 2), 6, frozenset())
        assert asyncio.run(Vllm(Path("python")).complete(server.client, request)).token_ids
        server.pause()
    assert not any(process.is_running() for process in family)


@pytest.mark.skipif(
    sys.platform != "linux", reason="other systems do not tell a process that its parent has ended"
)
@pytest.mark.parametrize("then", ["pass", "server.pause()"])
def test_a_server_ends_when_the_process_that_started_it_is_killed(tmp_path: Path, then: str) -> None:
    port, pid = free_port(), tmp_path / "pid"
    words = ["sh", "-c", f"echo $$ > {pid}; exec {' '.join(repr(word) for word in command(port))}"]
    code = (
        "import pathlib, time; from draftrank.serving.process import running\n"
        f"with running({words!r}, {port}, pathlib.Path({str(tmp_path / 'log')!r}), name='draftrank') as server:\n"
        f"    {then}; print('ready', flush=True); time.sleep(600)"
    )
    starter = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert starter.stdout is not None
    assert starter.stdout.readline() == b"ready\n"
    starter.kill()
    starter.wait()
    until = time.monotonic() + 20
    while Path(f"/proc/{pid.read_text().strip()}/cmdline").exists():
        assert time.monotonic() < until
        time.sleep(0.05)


def _ask(client: Client) -> None:
    try:
        asyncio.run(Vllm(Path("python")).complete(client, CompletionRequest((1, 2), 20, frozenset())))
    finally:
        time.sleep(0.2)  # until the process has ended
