"""The prompts that the benchmarks of the engine decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from draftrank.drafting.prompting import render_turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from draftrank import Workspace
    from draftrank.catalog.target import Target


def first_turns(
    workspace: Workspace,
    target: Target,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    per_task: int,
) -> list[tuple[int, ...]]:
    """The first turns of some prompts of each task, spread evenly over it, as the target reads them."""
    full = workspace.suite("full")
    rendered = []
    for task_id in tasks:
        (entry,) = [entry for entry in full.tasks if entry.task == task_id]
        (task,), _ = workspace.prompts(full.model_copy(update={"tasks": (entry,)}))
        stride = max(1, len(task.prompts) // per_task)
        rendered += [
            tuple(render_turns(tokenizer, target.prompt_format, prompt.turns[:1], [], None))
            for prompt in task.prompts[::stride][:per_task]
        ]
    return rendered
