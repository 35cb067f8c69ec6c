"""What proposes tokens, seen from the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from draftrank.catalog.backend import Backend, Device, Dtype

if TYPE_CHECKING:
    from torch import Tensor

    from draftrank.engine.backends.cuda_graphs.steps import DeviceSteps
    from draftrank.engine.runtime import Runtime
    from draftrank.engine.sampling import Sampler


@dataclass(frozen=True, slots=True)
class Proposal:
    """Tokens offered for one step: a chain, or a tree of several continuations."""

    tokens: Sequence[int]
    """Proposed token ids, in order."""
    probabilities: Tensor | None = None
    """Distributions they were drawn from, float32 [len(tokens), vocabulary]; None when the proposer
    was certain of each (greedy decoding, n-grams)."""
    forwards: int = 0
    """Forwards of a draft model that this took."""
    parents: tuple[int, ...] | None = None
    """For each token, the place in `tokens` of the one before it, which is an earlier place, or -1 where it follows the
    context; no two tokens with the same parent are equal. None: a chain. Only greedy decoding takes a tree."""
    drafted: tuple[int, ...] | None = None
    """For each token, its place in the tree that the draft model read, whose root is the context's last token; 0 where
    the draft did not read it. None: it read all but the last in order."""

    def children(self, place: int) -> range | list[int]:
        """Places of the tokens that follow the one at `place`, or the context where that is -1."""
        if self.parents is None:
            return range(place + 1, min(place + 2, len(self.tokens)))
        return [child for child, parent in enumerate(self.parents) if parent == place]

    def path(self, tokens: Sequence[int]) -> list[int]:
        """Places of these tokens, each the one before it of the next, as far as they were proposed."""
        found: list[int] = []
        for token in tokens:
            children = self.children(found[-1] if found else -1)
            following = [child for child in children if self.tokens[child] == token]
            if not following:
                break
            found.append(following[0])
        return found


class Proposer(Protocol):
    """Proposes continuations of one sequence at a time."""

    def begin(self, prompt: Sequence[int], sampler: Sampler, reserve: int) -> None:
        """Starts a sequence: the target holds `prompt`; at most `reserve` tokens will ever stand."""

    def propose(self, context: Sequence[int], count: int) -> Proposal:
        """At most `count` (at least 1) tokens to follow `context`, whose last token the target has
        not been fed yet."""

    def settle(self, accepted: Sequence[int]) -> None:
        """Tells which tokens of the last proposal stand, in the order of the text; the others never happened."""

    def watch(self, accepted: Sequence[int]) -> None:
        """Tells which tokens of another's proposal stand, that the target has just read behind the context's last one; in
        place of `propose` and `settle`."""

    def runtime(self) -> Runtime | None:
        """The model that proposes, for measuring its forwards; None without one."""


@runtime_checkable
class SteppingProposer(Protocol):
    """A proposer whose steps may need no host."""

    def device_steps(self, target: Runtime, sampler: Sampler, count: int) -> DeviceSteps | None:
        """Steps of at most `count` proposed tokens each; None where the host is needed in each.

        Args:
            target: what verifies.
            sampler: the sequence's mode.
            count: k.
        """


@dataclass(frozen=True, slots=True)
class ProposerContext:
    """What a draft needs to become a proposer."""

    target: Runtime
    """The target's runtime."""
    draft_folder: Path | None
    """The built draft; None for drafts without weights of their own."""
    target_folder: Path
    """The target's Hugging Face folder, for its vocabulary."""
    dtype: Dtype
    """What the draft's weights are loaded in, unless its build says otherwise."""
    device: Device
    """Where the session runs."""
    backend: Backend = "transformers"
    """What runs the draft's model."""
    stop_below_confidence: float | None = None
    """The recipe's; None: never stop early."""
    branch_above_probability: float | None = None
    """The recipe's; None: propose chains."""
