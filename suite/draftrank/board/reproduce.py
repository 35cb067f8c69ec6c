"""The command that measures a row again."""

from __future__ import annotations

import re
import shlex

from draftrank.catalog.backend import is_backend, is_dtype
from draftrank.measure.records import Session

CUSTOM = "-custom"
"""How a run marks a suite that it narrowed by tasks or repeats."""
TUNING = "-tuning"
"""How `tune-k` marks the suite of its sessions: their arms are variants, which no recipe file declares."""
SEARCH = "-search"
"""How `search` marks the suite of its session: its arms are recipes that it wrote."""
_VARIANT = re.compile(r"-k[0-9]+(?:-c[0-9.]+)?$")


def reproduce_command(session: Session, draft: str) -> str:
    """`draftrank run …` with every option that differs from its default, quoted for a shell."""
    if session.suite.endswith(TUNING):
        words = ["draftrank", "tune-k", _VARIANT.sub("", draft), "--target", session.target]
    elif session.suite.endswith(SEARCH):
        words = ["draftrank", "search", "--target", session.target]
    else:
        words = ["draftrank", "run", session.target, "--draft", draft]
    words += ["--suite", session.suite.removesuffix(CUSTOM).removesuffix(TUNING).removesuffix(SEARCH)]
    if session.suite.endswith(CUSTOM):
        for task in session.tasks:
            words += ["--task", task.task]
        words += ["--repeats", str(session.repeats)]
    if is_backend(session.backend):  # one that has retired cannot be asked for
        words += ["--backend", session.backend]
    if is_dtype(session.dtype):
        words += ["--dtype", session.dtype]
    words += ["--device", session.device]
    if any(arm.id == draft and arm.backend not in (None, session.backend) for arm in session.arms):
        words += ["--allow-mixed-backends"]
    if not session.mode.greedy:
        words += ["--temperature", f"{session.mode.temperature:g}"]
        if session.mode.top_p is not None:
            words += ["--top-p", f"{session.mode.top_p:g}"]
        if session.mode.top_k is not None:
            words += ["--top-k", str(session.mode.top_k)]
    if session.seed:
        words += ["--seed", str(session.seed)]
    return shlex.join(words)
