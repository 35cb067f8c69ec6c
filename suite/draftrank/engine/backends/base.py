"""What every backend gives the engine: a causal language model with a KV cache that rolls back.

A runtime holds one sequence. `forward` appends tokens and returns logits, `commit` ends a step, `rollback` takes the
newest tokens back. What a runtime can do beyond that it states once, in its `Capabilities`; its other methods may be
called where these say so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from draftrank.errors import IncompatibleDraftError, InvalidInputError

if TYPE_CHECKING:
    from torch import Tensor

    from draftrank.catalog.decoding_mode import DecodingMode
    from draftrank.engine.proposer import DeviceSteps, DeviceTokens, Proposal
    from draftrank.engine.sampling import Sampler
    from draftrank.engine.stamps import DeviceStamp, HostStamp
    from draftrank.engine.token_tree import Branch, TokenTree, TreeWidth


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a runtime can do beyond reading tokens one after another."""

    trees: bool = False
    """`forward` reads token trees."""
    hidden_states: bool = False
    """`keep_hidden_states` and `hidden_states`: outputs of chosen layers, and the final hidden states."""
    first_layers: bool = False
    """`first_layers`: the model's first layers can be run alone."""
    choices: bool = False
    """`choices`: it finds the most likely tokens where its logits lie."""
    chain: bool = False
    """`chain`: it drafts several tokens in one call."""
    chain_stops: bool = False
    """`chain` can stop at a token of low probability."""
    tree_growth: bool = False
    """`grow_tree`: it drafts a token tree in one call."""
    device: bool = False
    """It runs on a device with a clock of its own: `stamp`, `forward_s`, `forward_after`, `decode_alone`, `device_steps`."""


class Runtime(ABC):
    """A causal language model with a KV cache of the sequence so far (batch of 1)."""

    name: ClassVar[str]
    """The backend's name."""
    vocabulary_size: int
    """Number of token ids; the width of a logits row."""
    context_window: int
    """Most tokens it can hold."""
    capabilities: Capabilities
    """What it can do."""
    fallback: str | None = None
    """What `compute_otherwise` has taken last, in words; None: nothing, and the fastest way holds."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Tokens in the KV cache."""

    @abstractmethod
    def reserve(self, tokens: int) -> None:
        """Makes room for `tokens` positions ahead of time, so that no step allocates.

        Raises:
            ContextOverflowError: `tokens` is more than the context window.
        """

    @abstractmethod
    def forward(
        self, tokens: Sequence[int], keep: int | None = None, tree: TokenTree | None = None
    ) -> Tensor:
        """Appends tokens to the KV cache.

        Args:
            tokens: token ids, at least one.
            keep: return logits after this many last tokens; None: after all. With a tree always all.
            tree: how the tokens follow each other (`Capabilities.trees`); None: as a chain. Its root is the next token of
                the sequence. A tree with more tokens than are given continues one whose first tokens are the newest in
                the cache. Until `commit` or `rollback` has left a chain, nothing but such continuations may be read.

        Returns:
            float tensor of shape [keep, vocabulary_size], valid until the next call.
        """

    def commit(self, root: int, path: Sequence[int]) -> None:
        """Ends a step: of the tokens from a position on only some stay.

        `hidden_states` is then of these tokens, where they were read in one forward.

        Args:
            root: position of the step's first token, the context's last one.
            path: which tokens stay, ascending, counted from `root`; of a tree: the root, 0, and then each the child of the
                one before. Without the capability `trees`: the first ones.
        """
        assert list(path) == list(range(len(path))), f"{self.name} reads no trees"
        self.rollback(self.length - root - len(path))

    @abstractmethod
    def rollback(self, count: int) -> None:
        """Drops the newest `count` tokens: as if they had never been read."""

    @abstractmethod
    def reset(self) -> None:
        """Drops all tokens."""

    def compute_otherwise(self) -> bool:
        """Computes forwards from now on in the next of the ways that it knows, from the fastest to the safest.

        Returns:
            whether there was another one.
        """
        return False

    def synchronize(self) -> None:
        """Waits until the device has done what it was asked; called before a clock is read."""

    def keep_hidden_states(self, layers: Sequence[int] = ()) -> None:
        """From now on every forward keeps its final hidden states, and the outputs of these layers (from 0).

        Raises:
            IncompatibleDraftError: the model has no such layer.
        """
        raise NotImplementedError

    def hidden_states(self, layers: Sequence[int] = ()) -> Tensor:
        """Hidden states of all tokens of the last forward, [tokens, (layers + 1) · hidden]: outputs of these layers, then
        the states after the final norm. Valid until the next forward."""
        raise NotImplementedError

    def first_layers(self, count: int) -> Runtime:
        """A view that runs the first `count` layers and the head, sharing weights and their KV cache.

        What the view has read must be rolled back before the full model reads again.

        Raises:
            InvalidInputError: the model has not more than `count` layers.
        """
        raise NotImplementedError

    def choices(self, count: int) -> list[int]:
        """The most likely token after each of the last `count` tokens; of equally likely ones the first. Waits."""
        raise NotImplementedError

    def chain(self, unseen: Sequence[int], count: int, stop_below: float | None = None) -> Sequence[int]:
        """Appends tokens and drafts up to `count` more, each the most likely one behind the one before.

        All but the last drafted token are appended too.

        Args:
            unseen: token ids to read first, at least one.
            count: how many to draft at most.
            stop_below: probability below which a drafted token is the last (`Capabilities.chain_stops`).

        Returns:
            the drafted tokens, valid until the next call. It need not have waited for them.
        """
        raise NotImplementedError

    def grow_tree(self, unseen: Sequence[int], count: int, width: TreeWidth) -> tuple[Sequence[Branch], int]:
        """Appends tokens, and then tokens of a tree that it grows level by level, each level one forward.

        Returns:
            of all tokens looked at the up to `count` most probable, the most probable first, and how many forwards that
            took.
        """
        raise NotImplementedError

    def forward_after(self, last: int, proposed: DeviceTokens) -> Tensor:
        """Appends a token and then tokens that the host has not seen; see `forward`. Does not wait."""
        raise NotImplementedError

    def decode_alone(
        self, last: int, count: int, sampler: Sampler
    ) -> Iterator[tuple[int, DeviceStamp | HostStamp]]:
        """Reads the context's last token, then what it has chosen, and so on: yields up to `count` tokens, and when each was
        known.

        The next one is under way while one is looked at; when nobody asks for it, it has never been read.

        Args:
            last: was chosen after the last forward.
            count: how many tokens.
            sampler: how they are chosen: the most likely ones, or drawn with its random numbers.
        """
        raise NotImplementedError

    def stamp(self) -> HostStamp | DeviceStamp:
        """The moment when everything asked so far is done."""
        raise NotImplementedError

    def forward_s(self, tokens: Sequence[int]) -> float:
        """Seconds that a forward over these tokens takes the device, without the host's part; nothing is appended."""
        raise NotImplementedError

    def device_steps(
        self,
        draft: Runtime,
        count: int,
        mode: DecodingMode,
        first: Callable[[Sequence[int], int], Proposal],
        chain: int | None = None,
        copying: Callable[[Sequence[int], int], Proposal] | None = None,
    ) -> DeviceSteps | None:
        """Speculative steps of this target that need no host; None where this draft cannot take part.

        Args:
            draft: what proposes.
            count: k, the most proposed tokens of a step.
            mode: how tokens are chosen.
            first: what the draft proposes for a context that the host knows, so that the draft has read all of it.
            chain: how many tokens the draft proposes; None: k.
            copying: what else may be proposed for a context, instead of what the draft has found meanwhile.
        """
        return None


def check_layers(layers: Sequence[int], depth: int) -> None:
    """Sees that a model of `depth` layers has the layers that a draft reads.

    Raises:
        IncompatibleDraftError: it has not.
    """
    unknown = [layer for layer in layers if not 0 <= layer < depth]
    if unknown:
        raise IncompatibleDraftError(
            f"the draft reads layer {unknown[0]} of a target that has layers 0 to {depth - 1}: use a draft that was made "
            "for this target"
        )


def check_exit(count: int, depth: int) -> None:
    """Sees that the first `count` layers of a model of `depth` layers leave something out.

    Raises:
        InvalidInputError: they do not.
    """
    if count >= depth:
        raise InvalidInputError.single(
            f"the target has {depth} layers, so an exit after {count} leaves nothing out",
            field="draft.layers",
            fix=f"use at most {depth - 1}",
        )
