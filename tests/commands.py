"""The real command, in processes of its own."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HEAVY = ("torch", "transformers")
MAX_S = 600
"""So long that only a command that hangs takes longer, on a busy machine too."""
PRELOADED = (
    "torch",
    "transformers.models.llama.modeling_llama",
    "draftrank.cli.main",
    "draftrank.engine.backends.registry",
    "draftrank.building.pipeline",
    "draftrank.jobs.session",
)

# Runs several commands one after the other in one interpreter, which starts only once.
_SEVERAL = """
import contextlib, io, json, sys
from draftrank.cli.main import main
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["draftrank", *json.loads(line)]
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    heavy = [name for name in HEAVY if name in sys.modules]
    print(json.dumps([code, out.getvalue(), err.getvalue(), heavy]), flush=True)
""".replace("HEAVY", repr(HEAVY))


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


def start(root: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Starts `draftrank` in a folder; variables of the outer world that steer it are left out."""
    return subprocess.Popen(
        [sys.executable, "-m", "draftrank", *arguments],
        cwd=root,
        env=_environment(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        preexec_fn=_listen_to_ctrl_c,
    )


def _listen_to_ctrl_c() -> None:
    """A test run in the background inherits an ignored SIGINT, and would hand it on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finish(process: subprocess.Popen[str]) -> Outcome:
    """Waits for a started command."""
    out, err = process.communicate(timeout=MAX_S)
    return _ended(process.returncode, out, err)


def draftrank(root: Path, *arguments: str, **environment: str) -> Outcome:
    """Runs one command to its end, in a process forked from one that has imported what takes long to import."""
    with TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = _forks().Process(target=_run, args=(root, arguments, _environment(environment), out, err))
        process.start()
        process.join(MAX_S)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"draftrank {' '.join(arguments)}: {err.read_text('utf-8')}")
        return _ended(process.exitcode, out.read_text("utf-8"), err.read_text("utf-8"))


def _run(root: Path, arguments: tuple[str, ...], environment: dict[str, str], out: Path, err: Path) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
    os.chdir(root)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["draftrank", *arguments]
    from draftrank.cli.main import main

    main()


@cache
def _forks() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


def _ended(code: int, out: str, err: str) -> Outcome:
    assert "Traceback" not in err, err
    return Outcome(code, out, err)


def several(root: Path, *commands: list[str], **environment: str) -> list[Outcome]:
    """Runs several commands in one interpreter; a traceback of any of them fails the caller."""
    done = subprocess.run(
        [sys.executable, "-c", _SEVERAL],
        cwd=root,
        env=_environment(environment),
        input="".join(json.dumps(command) + "\n" for command in commands),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=MAX_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(outcomes) == len(commands)
    for _, _, err, _ in outcomes:
        assert "Traceback" not in err, err
    return [Outcome(code, out, err, tuple(heavy)) for code, out, err, heavy in outcomes]


def _environment(changes: dict[str, str]) -> dict[str, str]:
    steered = {
        "OMP_NUM_THREADS": "1",
        "DRAFTRANK_OFFLINE": "1",
        "DRAFTRANK_WATCH": "off",  # the machine that runs the tests may well be busy
        "PYTHONUTF8": "1",
    }
    return {**os.environ, **steered, **changes}
