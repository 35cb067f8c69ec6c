"""What proposes tokens, seen from the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from draftrank.catalog.precision import Precision

if TYPE_CHECKING:
    from torch import Tensor

    from draftrank.decoding.runtime import Runtime
    from draftrank.decoding.sampling import Sampler


@dataclass(frozen=True, slots=True)
class Proposal:
    """Tokens offered for one step."""

    tokens: list[int]
    """Proposed token ids, in order."""
    probabilities: Tensor | None = None
    """Distributions they were drawn from, float32 [len(tokens), vocabulary]; None when the proposer
    was certain of each (greedy decoding, n-grams)."""
    forwards: int = 0
    """Forwards of a draft model that this took."""


class Proposer(Protocol):
    """Proposes continuations of one sequence at a time."""

    def begin(self, prompt: Sequence[int], sampler: Sampler, reserve: int) -> None:
        """Starts a sequence: the target holds `prompt`; at most `reserve` tokens will ever stand."""

    def propose(self, context: Sequence[int], count: int) -> Proposal:
        """At most `count` (at least 1) tokens to follow `context`, whose last token the target has
        not been fed yet."""

    def settle(self, accepted: int) -> None:
        """Tells how many tokens of the last proposal stand; the others never happened."""

    def runtime(self) -> Runtime | None:
        """The model that proposes, for measuring its forwards; None without one."""


@dataclass(frozen=True, slots=True)
class ProposerContext:
    """What a draft needs to become a proposer."""

    target: Runtime
    """The target's runtime."""
    draft_folder: Path | None
    """The built draft; None for drafts without weights of their own."""
    target_folder: Path
    """The target's Hugging Face folder, for its vocabulary."""
    dtype: Precision
    """The session's precision."""
    device: Literal["cpu", "cuda"]
    """Where the session runs."""
    stop_below_confidence: float | None = None
    """The recipe's; None: never stop early."""
