"""What must hold between the parts of a bundle; each record checks itself, this checks how they fit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from datetime import date
from typing import Any

from pydantic import TypeAdapter, ValidationError

from draftrank.catalog.base import Identifier
from draftrank.catalog.plain_text import fault_of_name
from draftrank.errors import InvalidInputError, Problem
from draftrank.measure.gates.timeline import timeline_problems
from draftrank.measure.records import BASELINE, CONTROL, Session, SessionResult, Trial

MAX_PROBLEMS = 20

_IDENTIFIER: TypeAdapter[Any] = TypeAdapter(Identifier)
PUBLISH_AGAIN = "publish the session again from its store"
_MEASURE_AGAIN = (
    "measure it again, without suspending the machine or setting its clock (`draftrank run --fresh`)"
)


def find_problems(result: SessionResult, file: str) -> list[Problem]:
    """Everything wrong with a bundle's content, at most `MAX_PROBLEMS`; empty when it is sound."""
    found = [*_session_problems(result.session), *_trial_problems(result)]
    return [Problem(message, file, None, field, fix) for field, message, fix in found[:MAX_PROBLEMS]]


def refused(error: ValidationError, file: str, fix: str, within: tuple[str, ...] = ()) -> InvalidInputError:
    """What a record refuses as problems of its file, at most `MAX_PROBLEMS`; `within` is the record's own field there."""
    return InvalidInputError(
        Problem(
            details["msg"].removeprefix("Value error, "),
            file,
            field=".".join(map(str, (*within, *details["loc"]))) or None,
            fix=fix,
        )
        for details in error.errors(include_url=False)[:MAX_PROBLEMS]
    )


def require_times(result: SessionResult, file: str) -> None:
    """What is imported or published must state seconds that fit the times of day it states.

    Raises:
        InvalidInputError: they contradict each other; says where.
    """
    found = timeline_problems(result)
    if found:
        raise InvalidInputError(
            Problem(f"its times contradict each other: {problem}", file, None, "trials", _MEASURE_AGAIN)
            for problem in found[:MAX_PROBLEMS]
        )


def _session_problems(session: Session) -> Iterator[tuple[str, str, str]]:
    if not is_identifier(session.target):
        yield "session.target", "is not an identifier", "use the target's id"
    for field, name in (("session.id", session.id), ("session.suite", session.suite)):
        if fault := fault_of_name(name):
            yield field, fault, PUBLISH_AGAIN
    for index, name in enumerate(session.skipped_tasks):
        if not is_identifier(name):
            yield f"session.skipped_tasks.{index}", "is not an identifier", "use the task's id"
    if session_date(session) is None:
        yield "session.created_at", "does not begin with a date", "write UTC time as YYYY-MM-DDThh:mm:ssZ"
    for what, names in (
        ("arms", [arm.id for arm in session.arms]),
        ("tasks", [t.task for t in session.tasks]),
    ):
        for name, count in Counter(names).items():
            if count > 1:
                yield f"session.{what}", f"{name!r} stands {count} times", "keep one of them"
    for index, task in enumerate(session.tasks):
        if len(task.prompts) != len(task.turns) or len(set(task.prompts)) != len(task.prompts):
            yield f"session.tasks.{index}", "prompts and turns do not match one to one", PUBLISH_AGAIN
        if not is_identifier(task.task):
            yield f"session.tasks.{index}.task", "is not an identifier", "use the task's id"
        for place, prompt in enumerate(task.prompts):
            if fault := fault_of_name(prompt):
                yield (
                    f"session.tasks.{index}.prompts.{place}",
                    fault,
                    "give the prompt another id in its data",
                )
    kinds = Counter(arm.kind for arm in session.arms)
    drafts = {arm.id for arm in session.arms if arm.kind == "draft"}
    if kinds["baseline"] != 1 or kinds["control"] > 1 or not kinds["draft"]:
        yield "session.arms", "are not one baseline, its control and drafts", PUBLISH_AGAIN
    for index, arm in enumerate(session.arms):
        named = {BASELINE: ("baseline",), CONTROL: ("control",)}.get(arm.id, ("draft", "reference"))
        if arm.kind not in named or not is_identifier(arm.id):
            yield (
                f"session.arms.{index}.id",
                f"{arm.id!r} does not fit the kind {arm.kind!r}",
                "use the arm's id",
            )
        if (arm.kind == "reference") != (arm.reference is not None):
            yield f"session.arms.{index}.reference", "stands with references, and only there", PUBLISH_AGAIN
        named_draft = arm.reference.draft if arm.reference else None
        if named_draft is not None and named_draft not in drafts:
            yield (
                f"session.arms.{index}.reference.draft",
                f"the session has no draft {named_draft!r}",
                PUBLISH_AGAIN,
            )
        if arm.kind != "draft" and named_draft is None and arm.num_speculative_tokens:
            yield f"session.arms.{index}.num_speculative_tokens", "must be 0 without a draft", "write 0"


def _trial_problems(result: SessionResult) -> Iterator[tuple[str, str, str]]:
    arms = {arm.id: arm for arm in result.session.arms}
    tasks = {task.task: task for task in result.session.tasks}
    turns = {
        (task.task, prompt): count
        for task in result.session.tasks
        for prompt, count in zip(task.prompts, task.turns, strict=False)
    }
    seen: dict[Any, int] = {}
    for index, trial in enumerate(result.trials):
        field = f"trials.{index}"
        first = seen.setdefault(trial.key, index)
        if first != index:
            yield field, f"repeats trials.{first}", "remove one of them"
        if trial.arm not in arms:
            yield f"{field}.arm", f"the session has no arm {trial.arm!r}", PUBLISH_AGAIN
        elif len(trial.accept_histogram) != arms[trial.arm].num_speculative_tokens + 1:
            yield f"{field}.accept_histogram", "must have num_speculative_tokens + 1 entries", PUBLISH_AGAIN
        if trial.task not in tasks:
            yield f"{field}.task", f"the session has no task {trial.task!r}", PUBLISH_AGAIN
        elif (trial.task, trial.prompt) not in turns:
            yield f"{field}.prompt", f"the task has no prompt {trial.prompt!r}", PUBLISH_AGAIN
        else:
            if trial.turn >= turns[trial.task, trial.prompt]:
                yield f"{field}.turn", "the prompt has fewer turns", PUBLISH_AGAIN
            if len(trial.token_ids) > tasks[trial.task].max_new_tokens:
                yield f"{field}.token_ids", "are more than the task's max_new_tokens", PUBLISH_AGAIN
        if not _sums_hold(trial):
            yield (
                f"{field}.offered",
                "does not fit the histogram, `proposed` and `proposal_sizes`",
                PUBLISH_AGAIN,
            )


def _sums_hold(trial: Trial) -> bool:
    """An (i+1)-th token is offered only where i were accepted, and accepted only where offered."""
    reached = [sum(trial.accept_histogram[i:]) for i in range(len(trial.accept_histogram))]
    possible = zip(reached[1:], trial.offered, reached[:-1], strict=True)
    verified = sum(size * steps for size, steps in enumerate(trial.proposal_sizes or ()))
    return (
        all(low <= offered <= high for low, offered, high in possible)
        and sum(trial.offered) <= trial.proposed
        and (trial.proposal_sizes is None or trial.proposed <= verified)
    )


def is_identifier(name: str) -> bool:
    """Whether the name has the form of a declaration's id."""
    try:
        _IDENTIFIER.validate_python(name)
    except ValidationError:
        return False
    return True


def session_date(session: Session) -> str | None:
    """UTC date (YYYY-MM-DD) on which a session began; None when `created_at` holds none."""
    found = re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?=[T ])", session.created_at)
    try:
        return date.fromisoformat(found[0]).isoformat() if found else None
    except ValueError:
        return None
