"""The engine's one seam: all that loops, rules and proposers know of a model.

A runtime holds one sequence. It is fed tokens, gives a row of logits for each of the last ones, and
can forget the newest tokens again. Target and draft may live in different runtimes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from draftrank.errors import IncompatibleDraftError

if TYPE_CHECKING:
    from torch import Tensor

    from draftrank.engine.device_tokens import DeviceTokens
    from draftrank.engine.sampling import Sampler
    from draftrank.engine.stamps import DeviceStamp, HostStamp
    from draftrank.engine.token_tree import Branch, TokenTree, TreeWidth


class Runtime(Protocol):
    """A causal language model with a cache of the sequence fed so far (batch of 1)."""

    name: str
    """Name stored with a session, a backend's, e.g. `cpp`."""
    vocabulary_size: int
    """Number of token ids; the width of a logits row."""
    context_window: int
    """Most tokens it can hold."""

    @property
    def length(self) -> int:
        """Tokens held now."""

    def reserve(self, tokens: int) -> None:
        """Makes room for `tokens` positions ahead of time, so that no step allocates.

        Raises:
            ContextOverflowError: `tokens` is more than the context window.
        """

    def feed(self, tokens: Sequence[int], keep: int | None = None) -> Tensor:
        """Appends tokens; returns the logits after each of the last `keep` (default: all) of them.

        Returns:
            float tensor of shape [keep, vocabulary_size], valid until the next call.
        """

    def forget(self, count: int) -> None:
        """Drops the newest `count` tokens: as if they had never been fed."""

    def reset(self) -> None:
        """Drops all tokens."""

    def synchronize(self) -> None:
        """Waits until the device has done what it was asked; called before a clock is read."""


@runtime_checkable
class HiddenStateRuntime(Protocol):
    """A runtime that also tells what the model thought, for drafts that read it."""

    def keep_hidden_states(self, layers: Sequence[int] = ()) -> None:
        """From now on every feed keeps its final hidden states, and the outputs of these layers (from 0).

        Raises:
            IncompatibleDraftError: the runtime does not tell the outputs of layers, or the model has no such layer.
        """

    def hidden_states(self, layers: Sequence[int] = ()) -> Tensor:
        """Hidden states of all tokens of the last feed: outputs of these layers, then those after the final norm,
        [tokens, (layers + 1) · hidden]; valid until the next one."""


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


@runtime_checkable
class TreeRuntime(Protocol):
    """A runtime that reads several continuations in one forward."""

    def feed_tree(self, tokens: Sequence[int], tree: TokenTree) -> Tensor:
        """Appends a tree of tokens, its root the next token of the sequence; returns the logits after each of them.

        A tree that has more places than tokens are given goes on: its first places are the newest tokens held. Until
        all but a chain of them are dropped, by `keep_path` or `forget`, nothing else may be fed.

        Returns:
            float tensor of shape [len(tokens), vocabulary_size], valid until the next call.
        """

    def keep_path(self, root: int, places: Sequence[int]) -> None:
        """Forgets all of the newest tree but a path.

        What `features` tells is then of these tokens, where the tree was fed at once.

        Args:
            root: position of the tree's root in the sequence. The caller says it, since a runtime that grows trees by
                itself (`BranchingRuntime`) appends other tokens than `feed_tree` was given last.
            places: places in the tree that stay: the root's, 0, and each the parent of the next.
        """


@runtime_checkable
class ChoosingRuntime(Protocol):
    """A runtime that chooses tokens where its logits lie."""

    def choices(self, count: int) -> list[int]:
        """The most likely token after each of the last `count` tokens fed; of equally likely ones the first. Waits."""


def chooser(runtime: Runtime) -> ChoosingRuntime | None:
    """The runtime if it chooses itself. To be asked once: whether something follows a protocol takes long to tell."""
    return runtime if isinstance(runtime, ChoosingRuntime) else None


@runtime_checkable
class DeviceTokenRuntime(Protocol):
    """A runtime that reads tokens which the host has not seen."""

    def feed_after(self, last: int, proposed: DeviceTokens) -> Tensor:
        """Appends a token and then these; see `Runtime.feed`. Does not wait."""


@runtime_checkable
class ChainRuntime(Protocol):
    """A runtime that goes on with its own choices unasked."""

    def chain(
        self, unseen: Sequence[int], count: int, stop_below: float | None = None
    ) -> Sequence[int] | None:
        """Appends tokens, then all but the last of up to `count` most likely ones, each chosen behind the one before; one
        that is less likely than `stop_below` is the last.

        Returns:
            the chosen tokens, valid until the next call: it need not have waited for them. None where it cannot go on by
            itself as asked for, and has done nothing.
        """


@runtime_checkable
class BranchingRuntime(Protocol):
    """A runtime that goes on with a tree of its own choices unasked."""

    def branch(
        self, unseen: Sequence[int], count: int, width: TreeWidth
    ) -> tuple[Sequence[Branch], int] | None:
        """Appends tokens, and then tokens of a tree that it grows level by level, each of them one forward.

        Returns:
            of all tokens looked at the up to `count` most probable, the most probable first, and how many forwards were made.
            None where it cannot, and has done nothing.
        """


@runtime_checkable
class SelfDecodingRuntime(Protocol):
    """A runtime whose device decodes by itself."""

    def decode_on(
        self, last: int, count: int, sampler: Sampler
    ) -> Iterator[tuple[int, DeviceStamp | HostStamp]]:
        """Feeds the context's last token, then what it has chosen, and so on: yields up to `count` tokens, and when each was
        known.

        The next one is under way while one is looked at; when nobody asks for it, it has never been fed.

        Args:
            last: was chosen after the last feed.
            count: how many tokens.
            sampler: how they are chosen: the most likely ones, or drawn with its random numbers.
        """


@runtime_checkable
class ClockedRuntime(Protocol):
    """A runtime whose device tells the time of what it was asked to do, without anybody waiting."""

    def stamp(self) -> HostStamp | DeviceStamp:
        """The moment when everything asked so far is done."""

    def forward_s(self, tokens: Sequence[int]) -> float:
        """Seconds that a forward over these tokens takes the device, without the host's part; nothing is appended."""


@runtime_checkable
class LayeredRuntime(Protocol):
    """A runtime that can also run its first layers alone."""

    def first_layers(self, count: int) -> Runtime:
        """A view that runs the first `count` layers and the head, sharing weights and their cache.

        What the view is fed it must forget before the full model is fed again.
        """
