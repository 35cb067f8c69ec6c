"""What proposes tokens, seen from the loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, overload

from draftrank.catalog.backend import Backend, Device, Dtype

if TYPE_CHECKING:
    from torch import Tensor

    from draftrank.engine.backends.base import Runtime
    from draftrank.engine.sampling import Sampler
    from draftrank.engine.stamps import DeviceStamp, HostStamp


class DeviceTokens(Sequence[int]):
    """Token ids that a captured draft proposed. How many there are is known; looking at one waits for the device."""

    def __init__(self, on_device: Tensor) -> None:
        """Wraps int64 [count] on its device, where it must stay what it is until somebody has looked."""
        self.on_device = on_device
        self._read: list[int] | None = None

    def __len__(self) -> int:
        return len(self.on_device)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if self._read is None:
            self._read = self.on_device.tolist()
        return self._read[index]


@dataclass(frozen=True, slots=True)
class Proposal:
    """Tokens offered for one step: a chain, or a tree of several continuations."""

    tokens: Sequence[int]
    """Proposed token ids, in order."""
    probabilities: Tensor | None = None
    """Distributions they were drawn from, float32 [len(tokens), vocabulary]; None when the proposer
    was certain of each (greedy decoding, copies, trees)."""
    forwards: int = 0
    """Forwards of a draft model that this took."""
    parents: tuple[int, ...] | None = None
    """For each token, the index in `tokens` of the one before it, which is lower than its own, or -1 where it follows the
    context; no two tokens with the same parent are equal. None: a chain. Typical acceptance takes no tree."""
    drafted: tuple[int, ...] | None = None
    """For each token, its index in the tree that the draft model read, whose root is the context's last token; 0 where
    the draft did not read it. None: it read all but the last in order."""

    def children(self, index: int) -> range | list[int]:
        """Indices of the tokens that follow the one at `index`, or the context where that is -1."""
        if self.parents is None:
            return range(index + 1, min(index + 2, len(self.tokens)))
        return [child for child, parent in enumerate(self.parents) if parent == index]

    def path(self, tokens: Sequence[int]) -> list[int]:
        """Indices of these tokens, each the parent of the next, as far as they were proposed."""
        found: list[int] = []
        for token in tokens:
            children = self.children(found[-1] if found else -1)
            following = [child for child in children if self.tokens[child] == token]
            if not following:
                break
            found.append(following[0])
        return found


class Proposer(ABC):
    """Proposes continuations of one sequence at a time."""

    translates: bool = False
    """Whether its model's tokens are not the target's, whose tokens it proposes all the same."""
    reads_target: bool = False
    """Whether it reads the target's hidden states or KV cache. If not, it needs the text alone."""

    @abstractmethod
    def begin(self, prompt: Sequence[int], sampler: Sampler, reserve: int) -> None:
        """Starts a sequence: the target has read `prompt`; the sequence will have at most `reserve` tokens."""

    @abstractmethod
    def propose(self, context: Sequence[int], count: int) -> Proposal:
        """At most `count` (at least 1) tokens to follow `context`, whose last token the target has not read yet."""

    def accept(self, tokens: Sequence[int]) -> None:
        """Tells which tokens of the last proposal were accepted, in the order of the text; the others never happened."""

    def observe(self, tokens: Sequence[int]) -> None:
        """Tells which tokens of another's proposal were accepted, in place of `propose` and `accept`. The target has just
        read them behind the context's last token."""

    def runtime(self) -> Runtime | None:
        """The model that proposes, for measuring its forwards; None without one."""
        return None

    def known(self) -> frozenset[int] | None:
        """The target's tokens that its model can ever propose; None: all that its head knows, by the target's ids."""
        return None

    def device_steps(self, target: Runtime, sampler: Sampler, count: int) -> DeviceSteps | None:
        """Steps of at most `count` proposed tokens each that need no host; None where the host is needed in each.

        Args:
            target: what verifies.
            sampler: the sequence's mode.
            count: k.
        """
        return None


@dataclass(frozen=True, slots=True)
class DeviceStep:
    """One step that a device has done by itself."""

    proposed: list[int]
    """At most k token ids."""
    choices: list[int]
    """The target's k + 1 choices, the first behind none of these, the next behind each; when sampling, valid up to the
    first that was not proposed (see `verification.coupled`)."""
    began: DeviceStamp | HostStamp
    """When verification began."""
    verified: DeviceStamp | HostStamp
    """When the choices were known."""


class DeviceSteps(Protocol):
    """Steps of a target and its draft on one device."""

    chain: int
    """Tokens that the draft proposes in each step, one forward each."""

    def run(self, context: Sequence[int], sampler: Sampler) -> Iterator[DeviceStep]:
        """Goes on without end.

        Args:
            context: the sequence so far, of which the target has read all but the last token; it has grown by what was
                accepted whenever the next step is asked for.
            sampler: the sequence's random numbers.
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
