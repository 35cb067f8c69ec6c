"""The real command, in processes of its own."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HEAVY = ("torch", "transformers")
MAX_S = 600
"""So long that only a command that hangs takes longer, on a busy machine too."""
TIMING_ROUNDS = 4
"""How often a session of small models times each forward, which would take longer than its decoding."""
DRAWS = 25
"""How many outputs test whether an arm samples from the target's distribution, which would take longer than the session."""
LOOK_S = 0.05
"""Seconds between two looks whether a server is ready: those of the tests are in less than the usual time."""
PRELOADED = (
    "torch",
    "transformers.models.llama.modeling_llama",
    "draftrank.cli.main",
    "draftrank.engine.backends.registry",
    "draftrank.building.pipeline",
    "draftrank.jobs.session",
    "draftrank.measure.sessions.bench",
    "draftrank.engine.backends.cpp.runtime",
    "draftrank.engine.backends.transformers.generate",
    "draftrank.building.surgery.library_quantization",
    "draftrank.store.bundle",
    "draftrank.store.store",
    "draftrank.board.site.render",
    "draftrank.board.serving_ranking",
    "draftrank.cli.results",
    "draftrank.cli.tables",
    "draftrank.workflows.serve_bench",
    "draftrank.workflows.sweep",
    "sqlalchemy.dialects.sqlite",
    "transformers.models.auto.tokenization_auto",
    "transformers.convert_slow_tokenizer",
)
"""What takes the process that commands are forked from long to import, once; what is missing here, every command imports."""


@dataclass(frozen=True)
class Outcome:
    """What one command left behind."""

    code: int
    out: str
    err: str
    heavy: tuple[str, ...] = ()
    """Which of the heavy packages were loaded by then, where that was asked."""

    @property
    def json(self) -> dict[str, Any]:
        """The object on the last line of standard output, which must be compact JSON."""
        assert self.out.endswith("\n"), self
        last = self.out.splitlines()[-1]
        value = json.loads(last)
        assert isinstance(value, dict)
        assert last == json.dumps(value, separators=(",", ":"))
        return value


class Running:
    """A started command, in a process forked from one that has imported what takes long to import."""

    def __init__(self, run: Callable[..., None], root: Path, arguments: object, environment: dict[str, str]):
        self._folder = TemporaryDirectory()
        self._out, self._err = Path(self._folder.name, "out"), Path(self._folder.name, "err")
        streams = (self._out, self._err)
        self._process = _forks().Process(target=_run, args=(run, root, arguments, environment, streams))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit code, negative after a signal; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    @property
    def out(self) -> str:
        """What it has printed by now."""
        return self._out.read_text("utf-8") if self._out.exists() else ""

    def finish(self) -> Outcome:
        """Waits for its end."""
        self._process.join(MAX_S)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            raise TimeoutError(self._err.read_text("utf-8"))
        outcome = Outcome(code, self.out, self._err.read_text("utf-8"))
        self._folder.cleanup()
        assert "Traceback" not in outcome.err, outcome.err
        return outcome


def start(root: Path, *arguments: str, **environment: str) -> Running:
    """Starts `draftrank` in a folder; variables of the outer world that steer it are left out."""
    return Running(_one, root, arguments, _environment(environment))


def draftrank(root: Path, *arguments: str, **environment: str) -> Outcome:
    """Runs one command to its end."""
    return start(root, *arguments, **environment).finish()


def several(root: Path, *commands: list[str], fresh: bool = False, **environment: str) -> list[Outcome]:
    """Runs several commands one after the other in one process; a traceback of any of them fails the caller.

    Args:
        root: the folder.
        commands: their arguments.
        fresh: in an interpreter of its own, that has imported nothing yet and heeds PYTHONHASHSEED.
        environment: variables.
    """
    if fresh:
        done = subprocess.run(
            [sys.executable, "-P", __file__, json.dumps(commands)],
            cwd=root,
            env=_environment(environment),
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=MAX_S,
            check=False,
        )
        code, out, err = done.returncode, done.stdout, done.stderr
    else:
        all_of_them = Running(_one_by_one, root, commands, _environment(environment)).finish()
        code, out, err = all_of_them.code, all_of_them.out, all_of_them.err
    assert code == 0, err
    outcomes = [json.loads(line) for line in out.splitlines()]
    assert len(outcomes) == len(commands)
    for _, _, err, _ in outcomes:
        assert "Traceback" not in err, err
    return [Outcome(code, out, err, tuple(heavy)) for code, out, err, heavy in outcomes]


def _run(
    run: Callable[..., None],
    root: Path,
    arguments: object,
    environment: dict[str, str],
    streams: tuple[Path, Path],
) -> None:
    """In the forked process."""
    from draftrank.store import database

    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background inherit an ignored one
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (
        open(number, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
        for number in (1, 2)
    )
    os.chdir(root)
    os.environ.clear()
    os.environ.update(environment)
    be_brief()
    database.SYNCHRONOUS = "OFF"  # as in the tests' own process
    run(arguments)


def be_brief(change: Callable[..., None] = setattr) -> None:
    """Lets sessions of this process time forwards in `TIMING_ROUNDS`, test samples by `DRAWS`, and look every `LOOK_S` whether
    a server is ready."""
    from draftrank.measure.cost import latency
    from draftrank.measure.fidelity.sampling_check import check_sampling
    from draftrank.measure.sessions import bench
    from draftrank.serving import process

    for name in ("MIN_ROUNDS", "MAX_ROUNDS"):
        change(latency, name, TIMING_ROUNDS)
    change(bench, "check_sampling", partial(check_sampling, draws=DRAWS))
    change(process, "_LOOK_S", LOOK_S)


def _one(arguments: tuple[str, ...]) -> None:
    sys.argv = ["draftrank", *arguments]
    from draftrank.cli.main import main

    main()


def _one_by_one(commands: list[list[str]]) -> None:
    """Prints a line of JSON for each: its exit code, both streams, and which heavy packages are loaded by then."""
    for command in commands:
        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                _one(command)
            except SystemExit as stop:
                code = stop.code or 0
        heavy = [name for name in HEAVY if name in sys.modules]
        print(json.dumps([code, out.getvalue(), err.getvalue(), heavy]), flush=True)


@cache
def _forks() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


def _environment(changes: dict[str, str]) -> dict[str, str]:
    steered = {
        "OMP_NUM_THREADS": "1",
        "DRAFTRANK_OFFLINE": "1",
        "DRAFTRANK_WATCH": "off",  # the machine that runs the tests may well be busy
        "PYTHONUTF8": "1",
    }
    return {**os.environ, **steered, **changes}


if __name__ == "__main__":
    _one_by_one(json.loads(sys.argv[1]))
