"""The command that measures a row again, or all of a serving session."""

from __future__ import annotations

import re
import shlex

from draftrank.catalog.backend import asked_dtype, is_backend
from draftrank.measure.records import Session
from draftrank.measure.serving_records import ServingArm, ServingSession

CUSTOM = "-custom"
"""How a run marks a suite that it narrowed by tasks or repeats."""
TUNING = "-tuning"
"""How `tune-k` marks the suite of its sessions: their arms are variants, which no recipe file declares."""
SEARCH = "-search"
"""How `search` marks the suite of its session: its arms are recipes that it wrote."""
_VARIANT = re.compile(r"-k[0-9]+(?:-c[0-9.]+)?$")


def explores(suite: str) -> bool:
    """Whether a session of this suite comes from `tune-k` or `search`, not from a run for a board."""
    return suite.endswith((TUNING, SEARCH))


def named_suite(suite: str) -> str:
    """Id of the suite that was asked for, where a run, `tune-k` or `search` measured what is derived from it."""
    return suite.removesuffix(CUSTOM).removesuffix(TUNING).removesuffix(SEARCH)


def reproduce_command(session: Session, draft: str) -> str:
    """`draftrank run …` with every option that differs from its default, quoted for a shell."""
    if session.suite.endswith(TUNING):
        words = ["draftrank", "tune-k", _VARIANT.sub("", draft), "--target", session.target]
    elif session.suite.endswith(SEARCH):
        words = ["draftrank", "search", "--target", session.target]
    else:
        words = ["draftrank", "run", session.target, "--draft", draft]
    words += ["--suite", named_suite(session.suite)]
    if session.suite.endswith(CUSTOM):
        for task in session.tasks:
            words += ["--task", task.task]
        words += ["--repeats", str(session.repeats)]
    if is_backend(session.backend):  # one that has retired cannot be asked for
        words += ["--backend", session.backend]
    dtype = asked_dtype(session.backend, session.dtype)
    if dtype != "auto":
        words += ["--dtype", dtype]
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


def serve_command(session: ServingSession) -> str:
    """`draftrank serve-bench …` for the whole session, quoted for a shell."""
    drafts = [arm for arm in session.arms if arm.draft_id is not None]
    words = ["draftrank", "serve-bench", session.target, "--server", session.server]
    for draft in dict.fromkeys(arm.draft_id for arm in drafts):
        words += ["--draft", str(draft)]
    for concurrency in session.concurrencies:
        words += ["--concurrency", str(concurrency)]
    words += ["--suite", named_suite(session.suite)]
    if session.suite.endswith(CUSTOM):
        for task in session.tasks:
            words += ["--task", task.task]
        words += ["--prompts", str(max(len(task.prompts) for task in session.tasks))]
    words += ["--rounds", str(session.rounds)]
    if session.rate is not None:
        words += ["--rate", f"{session.rate:g}"]
    if any(arm.num_speculative_tokens != _declared_k(arm) for arm in drafts):
        for k in sorted({arm.num_speculative_tokens for arm in drafts}):
            words += ["--k", str(k)]
    if session.seed:
        words += ["--seed", str(session.seed)]
    return shlex.join(words)


def _declared_k(arm: ServingArm) -> int | None:
    speculate = arm.draft.recipe.get("speculate") if arm.draft else None
    return (
        speculate.get("num_speculative_tokens") if isinstance(speculate, dict) else arm.num_speculative_tokens
    )
