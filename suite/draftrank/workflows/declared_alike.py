"""Whether what a bundle says it measured is what this workspace declares.

Everything here is compared before anything is built or run: a re-run of other prompts, another target or
another recipe would prove nothing.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace

from pydantic import ValidationError

from draftrank.board.reproduce import CUSTOM, named_suite
from draftrank.catalog.prompts import TaskPrompts, read_prompts
from draftrank.catalog.recipe import Recipe
from draftrank.catalog.task import Suite
from draftrank.catalog.workspace import Workspace
from draftrank.errors import InvalidInputError, MissingDataError
from draftrank.jobs.session import narrowed
from draftrank.measure.records import Arm, Session, SessionTask
from draftrank.measure.sessions.plan import session_task
from draftrank.measure.summaries.recheck import Check


def check_target(workspace: Workspace, session: Session) -> Check:
    """The target's declaration, by its hash."""
    try:
        target = workspace.target(session.target)
    except InvalidInputError as error:
        return Check("target", "fails", str(error))
    if target.content_sha256() != session.target_sha256:
        return Check("target", "fails", f"{session.target} is declared otherwise here")
    return Check("target", "holds", f"{session.target} is declared alike")


def check_recipe(workspace: Workspace, session: Session, arm: Arm) -> Check:
    """The recipe in the bundle, its stated hash, the arm made from it, and the workspace's recipe."""
    problem = next(_recipe_problems(workspace, session, arm), None)
    return Check("recipe", "fails" if problem else "holds", problem or f"{arm.id} is declared alike")


def _recipe_problems(workspace: Workspace, session: Session, arm: Arm) -> Iterator[str]:
    if arm.draft is None:
        yield f"the bundle holds no built draft: {arm.failure}"
        return
    try:
        stated = Recipe.model_validate_json(json.dumps(arm.draft.recipe))
    except ValidationError as error:
        yield f"the bundle's recipe is none: {error.errors()[0]['msg']}"
        return
    if stated.content_sha256() != arm.draft.recipe_sha256:
        yield "recipe_sha256 is not the hash of the bundle's recipe: one was changed"
    speculate = stated.speculate
    if (stated.id, stated.target) != (arm.id, session.target):
        yield f"the bundle's recipe is {stated.id} for {stated.target}"
    if speculate.num_speculative_tokens != arm.num_speculative_tokens:
        yield f"k is {arm.num_speculative_tokens}, the recipe says {speculate.num_speculative_tokens}"
    if (speculate.typical_acceptance is not None) != arm.lossy:
        yield "whether the rule is lossy is not what the recipe says"
    try:
        declared = workspace.recipe(session.target, arm.id)
    except InvalidInputError as error:
        yield str(error)
        return
    if declared.content_sha256() != arm.draft.recipe_sha256:
        yield f"{arm.id} is declared otherwise here"


def check_tasks(workspace: Workspace, session: Session) -> tuple[tuple[Check, ...], tuple[TaskPrompts, ...]]:
    """Each task's declaration and prompts, by their hashes, and whether they are the suite's.

    Returns:
        The checks, and the tasks that agree, with the session's prompts.
    """
    checks, agreeing = [], []
    for task in session.tasks:
        try:
            found = _prompts_of(workspace, task)
        except MissingDataError as error:
            checks.append(Check(f"task {task.task}", "skipped", f"its data cannot be had here: {error}"))
            continue
        except InvalidInputError as error:
            checks.append(Check(f"task {task.task}", "fails", str(error)))
            continue
        if isinstance(found, str):
            checks.append(Check(f"task {task.task}", "fails", found))
        else:
            checks.append(
                Check(f"task {task.task}", "holds", f"its {len(task.prompts)} prompts are the same")
            )
            agreeing.append(found)
    return (*checks, _check_suite(workspace, session)), tuple(agreeing)


def suite_of(workspace: Workspace, session: Session) -> Suite:
    """A session's suite as it would be measured now. No file declares those that `run` narrows and `tune-k` and `search`
    name by themselves: they are made again from the suite that was asked for.

    Raises:
        InvalidInputError: there is no such suite, or it is invalid.
    """
    if (workspace.root / "tasks" / "suites" / f"{session.suite}.yaml").is_file():
        return workspace.suite(session.suite)
    suite = workspace.suite(named_suite(session.suite))
    if session.suite.endswith(CUSTOM):
        tasks = (*(task.task for task in session.tasks), *session.skipped_tasks)
        suite = narrowed(suite, tasks, repeats=session.repeats)
    return suite.model_copy(update={"id": session.suite})


def sample(tasks: tuple[TaskPrompts, ...], prompts: int, seed: int) -> tuple[TaskPrompts, ...]:
    """At most so many prompts of each task, drawn at random; equal seeds draw the same."""
    chosen = []
    for task in tasks:
        drawn = random.Random(f"{seed}/{task.task.id}").sample(  # (a choice, not a secret)
            range(len(task.prompts)), min(prompts, len(task.prompts))
        )
        chosen.append(replace(task, prompts=tuple(task.prompts[index] for index in sorted(drawn))))
    return tuple(chosen)


def _prompts_of(workspace: Workspace, stated: SessionTask) -> TaskPrompts | str:
    task = workspace.task(stated.task)
    if task.content_sha256() != stated.task_sha256:
        return "the task is declared otherwise here: another version of it was measured"
    known = {prompt.id: prompt for prompt in read_prompts(task, workspace.fetch_context())}
    unknown = [name for name in stated.prompts if name not in known]
    if unknown:
        return f"it has no prompt {unknown[0]!r}"
    if stated.max_new_tokens > task.max_new_tokens:
        return f"max_new_tokens is {stated.max_new_tokens}, the task allows {task.max_new_tokens}"
    found = TaskPrompts(task, tuple(known[name] for name in stated.prompts), stated.max_new_tokens)
    if session_task(found) != stated.declared:
        return "its prompts have other texts or turns here"
    return found


def _check_suite(workspace: Workspace, session: Session) -> Check:
    if session.suite.endswith(CUSTOM):
        return Check("suite", "skipped", f"{session.suite} is a selection of its own")
    try:
        suite = suite_of(workspace, session)
    except InvalidInputError as error:
        return Check("suite", "fails", str(error))
    if suite.content_sha256() != session.suite_sha256:
        told = "declared otherwise here: its tasks are compared one by one, not which of them it takes"
        return Check("suite", "skipped", f"{session.suite} is {told}")
    selected, _ = workspace.prompts(suite)
    stated = {task.task: task.declared for task in session.tasks}
    for task in map(session_task, selected):
        if task.task not in session.skipped_tasks and stated.get(task.task) != task:
            return Check("suite", "fails", f"the suite selects other prompts of {task.task}")
    if set(stated) | set(session.skipped_tasks) != {entry.task for entry in suite.tasks}:
        return Check("suite", "fails", "the session has other tasks than its suite")
    if session.repeats != suite.repeats:
        return Check("suite", "fails", f"repeats is {session.repeats}, the suite says {suite.repeats}")
    return Check("suite", "holds", f"{session.suite} selects the same prompts")
