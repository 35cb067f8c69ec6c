"""What the benchmarks of the engine have in common: their prompts, the order of arms, and ratios with intervals."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from draftrank.measure.statistics.log_ratio import jackknife
from draftrank.models.prompting import render_turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from draftrank import Workspace
    from draftrank.catalog.target import Target

Name = TypeVar("Name")
Decoded = list[tuple[int, float]]
"""Tokens and seconds of one arm, an entry per prompt."""


def arguments(what: str, *, k: int, tokens: int) -> argparse.ArgumentParser:
    """The options that all of them have."""
    parser = argparse.ArgumentParser(description=what.splitlines()[0])
    parser.add_argument("--target", default="smollm2-135m-instruct")
    parser.add_argument("--k", type=int, default=k)
    parser.add_argument("--prompts", type=int, default=4, help="per task")
    parser.add_argument("--tasks", nargs="+", default=["code", "math", "rag"])
    parser.add_argument("--tokens", type=int, default=tokens)
    return parser


def first_turns(
    workspace: Workspace,
    target: Target,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    per_task: int,
) -> list[tuple[int, ...]]:
    """The first turns of some prompts of each task, spread evenly over it, as the target reads them."""
    full = workspace.suite("full")
    rendered: list[tuple[int, ...]] = []
    for task_id in tasks:
        (entry,) = [entry for entry in full.tasks if entry.task == task_id]
        (task,), _ = workspace.prompts(full.model_copy(update={"tasks": (entry,)}))
        stride = max(1, len(task.prompts) // per_task)
        rendered += [
            tuple(render_turns(tokenizer, target.prompt_format, prompt.turns[:1], [], None))
            for prompt in task.prompts[::stride][:per_task]
        ]
    return rendered


def blocks(
    prompts: Sequence[tuple[int, ...]], arms: Sequence[Name]
) -> Iterator[tuple[tuple[int, ...], list[Name]]]:
    """Each prompt with the order of its arms, which rotates and reverses; says on standard error how far it is."""
    for index, prompt in enumerate(prompts):
        sys.stderr.write(f"\rprompt {index + 1} of {len(prompts)}")
        rotated = [*arms[index % len(arms) :], *arms[: index % len(arms)]]
        yield prompt, rotated if index % 2 else rotated[::-1]
    sys.stderr.write("\n")


def compared(ours: Decoded, theirs: Decoded, whose: str) -> dict[str, object]:
    """Our tokens per second over those of another, with a 95 % interval by the jackknife over prompts."""
    rows = [
        (their_s, their_n, our_s, our_n)
        for (our_n, our_s), (their_n, their_s) in zip(ours, theirs, strict=True)
    ]
    log = jackknife(np.array(rows))
    if log is None:
        sys.exit("two prompts at least are needed for an interval: raise --prompts")
    return {
        "ratio": round(log.ratio, 3),
        "ci": [round(end, 3) for end in log.ends()],
        "tokens_per_second": _rate(ours),
        f"{whose}_tokens_per_second": _rate(theirs),
    }


def _rate(decoded: Decoded) -> float:
    return round(sum(tokens for tokens, _ in decoded) / sum(seconds for _, seconds in decoded), 2)
