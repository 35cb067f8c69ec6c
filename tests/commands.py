"""The real command, in processes of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEAVY = ("torch", "transformers")

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
    out, err = process.communicate(timeout=240)
    outcome = Outcome(process.returncode, out, err)
    assert "Traceback" not in err, err
    return outcome


def draftrank(root: Path, *arguments: str, **environment: str) -> Outcome:
    """Runs one command to its end."""
    return finish(start(root, *arguments, **environment))


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
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(outcomes) == len(commands)
    for _, _, err, _ in outcomes:
        assert "Traceback" not in err, err
    return [Outcome(code, out, err, tuple(heavy)) for code, out, err, heavy in outcomes]


def _environment(changes: dict[str, str]) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("DRAFTRANK_") and name not in ("COLUMNS", "FORCE_COLOR", "PYTHONIOENCODING")
    }
    steered = {
        "OMP_NUM_THREADS": "1",
        "DRAFTRANK_OFFLINE": "1",
        "DRAFTRANK_WATCH": "off",  # the machine that runs the tests may well be busy
        "PYTHONUTF8": "1",
    }
    return {**kept, **steered, **changes}
