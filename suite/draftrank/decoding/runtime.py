"""The engine's one seam: all that loops, rules and proposers know of a model.

A runtime holds one sequence. It is fed tokens, gives a row of logits for each of the last ones, and
can forget the newest tokens again. Target and draft may live in different runtimes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from draftrank.decoding.token_tree import TokenTree


class Runtime(Protocol):
    """A causal language model with a cache of the sequence fed so far (batch of 1)."""

    name: str
    """Name stored with a session, e.g. `torch-eager`."""
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
class FeaturedRuntime(Protocol):
    """A runtime that also tells what the model thought, for drafts that read it."""

    def remember_features(self, layers: Sequence[int] = ()) -> None:
        """From now on every feed keeps its final hidden states, and the outputs of these layers (from 0).

        Raises:
            IncompatibleDraftError: the runtime does not tell the outputs of layers.
        """

    def features(self, layers: Sequence[int] = ()) -> Tensor:
        """Hidden states of all tokens of the last feed: outputs of these layers, then those after the final norm,
        [tokens, (layers + 1) · hidden]; valid until the next one."""


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

    def keep_path(self, places: Sequence[int]) -> None:
        """Forgets all of the last tree but these places: the root, and each the parent of the next.

        What `features` tells is then of these tokens, where the tree was fed at once.
        """


@runtime_checkable
class LayeredRuntime(Protocol):
    """A runtime that can also run its first layers alone."""

    def first_layers(self, count: int) -> Runtime:
        """A view that runs the first `count` layers and the head, sharing weights and their cache.

        What the view is fed it must forget before the full model is fed again.
        """
