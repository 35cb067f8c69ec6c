"""Runtimes of small models by backend, without the comparison that opening makes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from draftrank.engine.backends.cpp.decoder import CppDecoder
from draftrank.engine.backends.cpp.runtime import CppRuntime
from draftrank.engine.backends.transformers.runtime import TransformersRuntime
from models import own_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from draftrank.engine.backends.base import Runtime

BACKENDS = ("transformers", "cpp")
"""Those that run on any CPU."""


def runtime_by(model: PreTrainedModel, backend: str) -> TransformersRuntime | CppRuntime:
    """The model by a backend, which must know it."""
    if backend == "transformers":
        return TransformersRuntime(model)
    assert CppDecoder.fits(model)
    return CppRuntime(model)


def path_to(parents: Sequence[int], place: int) -> list[int]:
    """The places of a tree from its beginning to this one; -1: none."""
    found: list[int] = []
    while place >= 0:
        found.insert(0, place)
        place = parents[place]
    return found


def check_rollbacks(
    runtime: Runtime,
    model: PreTrainedModel,
    moves: Iterable[tuple[Sequence[int], int]],
    atol: float = 2e-4,
    rtol: float = 1e-4,
) -> None:
    """The law: whatever was read and taken back, logits are those of the model's own forward.

    Args:
        runtime: of that model; it is reset.
        model: says what is right.
        moves: tokens to read, and how many of all that are held then to take back.
        atol: how far a logit may be.
        rtol: the same, relatively.
    """
    runtime.reset()
    held: list[int] = []
    for fed, forgotten in moves:
        logits = runtime.forward(fed)
        held += fed
        torch.testing.assert_close(logits, own_logits(model, held)[-len(fed) :], atol=atol, rtol=rtol)
        count = min(forgotten, len(held))
        runtime.rollback(count)
        held = held[: len(held) - count]
        assert runtime.length == len(held)
