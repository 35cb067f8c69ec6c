"""In which order the steps of a recipe make sense."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from draftrank.catalog.step import Phase, StepBase

_BEFORE: dict[Phase, tuple[Phase, ...]] = {
    "structure": ("factors", "tying", "head", "sparsity", "input"),
    "factors": ("tying", "sparsity", "input"),
    "tying": ("input",),
    "sparsity": ("factors", "tying", "input"),
    "input": ("input",),
}
"""Phases that must not have come before."""


@dataclass(frozen=True, slots=True)
class OrderRule:
    """One rule, with its reason."""

    reason: str
    """Why it holds, with `{step}` and `{other}`."""
    fix: str
    """What to do."""
    broken: Callable[[Sequence[StepBase]], tuple[str, str] | None]
    """The step that stands wrong and the one it clashes with."""


def order_fault(steps: Sequence[StepBase]) -> str | None:
    """What is wrong with the order of a recipe's steps, with the fix; None when nothing is."""
    for rule in RULES:
        found = rule.broken(steps)
        if found is not None:
            step, other = found
            return f"{rule.reason.format(step=step, other=other)} (fix: {rule.fix.format(step=step, other=other)})"
    return None


def _origin_first(steps: Sequence[StepBase]) -> tuple[str, str] | None:
    for step in steps[1:]:
        if step.phase == "origin":
            return step.kind, steps[0].kind
    return None


def _precision_last(steps: Sequence[StepBase]) -> tuple[str, str] | None:
    for step, later in pairwise(steps):
        if step.phase == "precision":
            return step.kind, later.kind
    return None


def _ordinary_layers(steps: Sequence[StepBase]) -> tuple[str, str] | None:
    for place, step in enumerate(steps):
        for earlier in steps[:place]:
            if earlier.phase in _BEFORE.get(step.phase, ()):
                return step.kind, earlier.kind
    return None


def _healed_last(steps: Sequence[StepBase]) -> tuple[str, str] | None:
    healing = [place for place, step in enumerate(steps) if step.phase == "healing"]
    if healing:
        for step in steps[healing[-1] + 1 :]:
            if step.phase == "structure":
                return step.kind, steps[healing[-1]].kind
    return None


RULES = (
    OrderRule(
        "{step} puts another model in the place of what {other} made",
        "make {step} the first step, or remove it",
        _origin_first,
    ),
    OrderRule(
        "{step} gives weights that no later step can change, and {other} comes after it",
        "make {step} the last step",
        _precision_last,
    ),
    OrderRule(
        "{step} needs the model as the architecture has it, and {other} has replaced or filled a part of it",
        "put {step} before {other}",
        _ordinary_layers,
    ),
    OrderRule(
        "{step} cuts again what {other} has healed",
        "put {step} before {other}, or heal once more after it",
        _healed_last,
    ),
)
"""Every rule of order; the documentation lists them."""
