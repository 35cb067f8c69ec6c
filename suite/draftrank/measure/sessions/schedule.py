"""The order in which arms take their turns.

All arms decode a prompt turn back to back; this is a block. Within a group of as many blocks as arms, the
order rotates, so each arm stands in each place equally often. Each group starts with another order, so no arm
always follows the same one. Every second repeat runs in reverse (ABBA), so that drift of the machine affects
all arms alike.

Rounds of a serving session take minutes each, so a session has only a few, and the machine drifts as fast as a fixed
pattern repeats. Their order is drawn anew for every block: `docs/simulation.md` shows that intervals then hold, and
that those of a fixed ABBA order do not.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from draftrank.measure.records import Session, SessionTask


@dataclass(frozen=True, slots=True)
class Block:
    """One prompt turn of one repeat."""

    task: int
    """Index of the task in the session."""
    prompt: int
    """Index of the prompt in the task."""
    turn: int
    """Index of the user turn."""
    repeat: int
    """Index of the repeat."""
    arms: tuple[str, ...]
    """Arm ids in the order they decode it."""


def schedule(tasks: Sequence[SessionTask], arms: Sequence[str], repeat: int, seed: int) -> Iterator[Block]:
    """All blocks of one repeat; tasks take turns, so that a run cut short has seen each of them.

    A prompt's turns follow one another, because a later one is asked in the context of the earlier.
    """
    order = [
        (task_index, prompt_index)
        for prompt_index in range(max(len(task.prompts) for task in tasks))
        for task_index, task in enumerate(tasks)
        if prompt_index < len(task.prompts)
    ]
    block = 0
    for task_index, prompt_index in order:
        for turn in range(tasks[task_index].turns[prompt_index]):
            group, shift = divmod(block, len(arms))
            arranged = list(arms)
            random.Random(f"{seed}/{group}").shuffle(arranged)  # (order, not secrecy)
            arranged = arranged[shift:] + arranged[:shift]
            if repeat % 2:
                arranged.reverse()
            yield Block(task_index, prompt_index, turn, repeat, tuple(arranged))
            block += 1


def cell_of(session: Session, block: Block) -> tuple[str, str, int, int]:
    """Task, prompt, turn and repeat of a block, as trials name them."""
    task = session.tasks[block.task]
    return (task.task, task.prompts[block.prompt], block.turn, block.repeat)


def round_order(arms: Sequence[str], plan: str, concurrency: int, index: int) -> tuple[str, ...]:
    """The order in which arms take the rounds of one block of a serving session.

    It depends on the hash of the session's plan, so that sessions differ and an interrupted one goes on in its own
    order.
    """
    arranged = list(arms)
    random.Random(f"{plan}/{concurrency}/{index}").shuffle(arranged)  # (order, not secrecy)
    return tuple(arranged)
