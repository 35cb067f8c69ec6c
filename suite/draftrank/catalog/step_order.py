"""The order that the steps of a recipe must follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from draftrank.catalog.step import Phase, StepBase

_BEFORE: dict[Phase, tuple[Phase, ...]] = {
    "structure": ("factors", "tying", "head", "sparsity"),
    "factors": ("tying", "sparsity"),
    "sparsity": ("factors", "tying"),
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


def _quantized_last(steps: Sequence[StepBase]) -> tuple[str, str] | None:
    for step, later in pairwise(steps):
        if step.phase == "quantization":
            return step.kind, later.kind
    return None


def _ordinary_layers(steps: Sequence[StepBase]) -> tuple[str, str] | None:
    for place, step in enumerate(steps):
        for earlier in steps[:place]:
            if earlier.phase in _BEFORE.get(step.phase, ()):
                return step.kind, earlier.kind
    return None


def _trained_last(steps: Sequence[StepBase]) -> tuple[str, str] | None:
    trained = [place for place, step in enumerate(steps) if step.phase == "training"]
    if trained:
        for step in steps[trained[-1] + 1 :]:
            if step.phase == "structure":
                return step.kind, steps[trained[-1]].kind
    return None


RULES = (
    OrderRule(
        "{step} replaces the model that {other} made",
        "make {step} the first step, or remove it",
        _origin_first,
    ),
    OrderRule(
        "{step} produces weights that later steps cannot change, and {other} follows it",
        "make {step} the last step",
        _quantized_last,
    ),
    OrderRule(
        "{step} needs the architecture's own modules, and {other} has replaced some of them or added to them",
        "put {step} before {other}",
        _ordinary_layers,
    ),
    OrderRule(
        "{step} prunes a model that {other} has already trained",
        "put {step} before {other}, or train once more after it",
        _trained_last,
    ),
)
"""Every rule of order; the documentation lists them."""
