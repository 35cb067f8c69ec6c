"""Forwards written for what bounds them: what the ways of computing them have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from draftrank.engine.backends.packed_product import Product
from draftrank.engine.backends.transformers.cache import zeros
from draftrank.engine.token_tree import MAX_TREE_TOKENS
from draftrank.models.architecture import Architecture
from draftrank.models.attention_windows import attention_windows
from draftrank.models.forms import TrimmedHead

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PretrainedConfig, PreTrainedModel

    from draftrank.engine.backends.transformers.cache import RollbackCache
    from draftrank.engine.token_tree import Branch, TokenTree, TreeWidth

MAX_TOKENS = MAX_TREE_TOKENS
"""Longest forward that is short, and most tokens of a tree."""
SUPPORTED = ("llama", "gemma3_text")
"""Model types whose layers are known here."""
_STATIC_ROTATIONS = frozenset({"default", "linear", "llama3", "yarn"})
"""Kinds of rotary embedding that do not depend on how long the sequence is."""


_GELU = {"silu": False, "gelu_pytorch_tanh": True}
"""Activations that kernels of our own know, by the names of configurations: whether it is GELU."""


class KnownDecoder:
    """What is known of a Llama or Gemma 3 decoder whose forward is written here."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Reads the model's shape; `fits` says which models can be given."""
        self._shape = Architecture.of(model)
        self._model = model
        config = model.config.get_text_config()
        self._queries, self._shared = int(config.num_attention_heads), int(config.num_key_value_heads)
        self._size = head_size(config)
        self._scale = float(getattr(config, "query_pre_attn_scalar", None) or self._size) ** -0.5
        self._eps = float(config.rms_norm_eps)
        self._windows = attention_windows(config)
        self._decoder = getattr(model, self._shape.decoder)
        self._norm = self._weight(self._shape.norm(model))
        self._rotations: dict[str, tuple[Tensor, Tensor]] = {}

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        """Whether this model's forward is written here."""
        config = model.config.get_text_config()
        return (
            config.model_type in SUPPORTED
            and _rotation_types(config) <= _STATIC_ROTATIONS
            and getattr(config, "attn_logit_softcapping", None) is None
            and not getattr(config, "use_bidirectional_attention", False)
        )

    def _rotation_tables(self, kind: str, end: int) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines of at least the first `end` positions, [positions, 1, size]."""
        known = self._rotations.get(kind)
        if known is None or len(known[0]) < end:
            known = self._rotations[kind] = self._tables(kind, max(2 * end, 512))
        return known

    def _rotation_dtype(self, weight: Tensor) -> torch.dtype:
        return weight.dtype

    def _tables(self, kind: str, positions: int) -> tuple[Tensor, Tensor]:
        weight = self._shape.embedding(self._model).weight
        assert isinstance(weight, Tensor)
        numbers = torch.arange(positions, device=weight.device)[None]
        several = {} if self._shape.model_type == "llama" else {"layer_type": kind}
        like = weight[:1, None].to(self._rotation_dtype(weight))
        cosine, sine = self._decoder.rotary_emb(like, numbers, **several)
        half = self._size // 2
        signed = torch.cat([-sine[..., :half], sine[..., half:]], -1)
        return cosine[0][:, None].contiguous(), signed[0][:, None].contiguous()

    def _weight(self, norm: nn.Module) -> Tensor:
        """A norm's weight as it multiplies, fp32."""
        weight = norm.weight
        assert isinstance(weight, Tensor)
        return weight.detach().float() + self._shape.norm_offset


class ShortForward(KnownDecoder, ABC):
    """The layers of a Llama or Gemma 3 decoder, with the embedding before and the final norm and the head after them."""

    runtime: ClassVar[str]
    """What a target decoded by it is said to be decoded by."""
    reads_prompts: ClassVar[bool] = False
    """Whether forwards of more than `MAX_TOKENS` are its own too; otherwise they are transformers'."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._head = self._head_product(self._shape.head(model))

    @abstractmethod
    def first(self, count: int, view: PreTrainedModel) -> Self:
        """The first `count` layers alone, as `view` has them; they share all weights."""

    @abstractmethod
    def run(
        self,
        inputs: Tensor,
        cache: RollbackCache,
        tree: TokenTree | None = None,
        states: dict[int, Tensor] | None = None,
    ) -> Tensor:
        """Appends tokens to the cache.

        Args:
            inputs: what the first layer reads, [tokens, hidden]; at most `MAX_TOKENS` unless it `reads_prompts`.
            cache: what is held so far.
            tree: how the tokens follow each other, see `TreeRuntime.feed_tree`; None: as a chain.
            states: by the numbers of layers, whose outputs replace what is there.

        Returns:
            states after the last layer, [tokens, hidden]; `normed` makes them final.
        """

    def reads_at_once(self, tokens: int) -> bool:
        """Whether `read` knows forwards of so many tokens."""
        return False

    def read(
        self,
        tokens: Sequence[int],
        cache: RollbackCache,
        wanted: int,
        tree: TokenTree | None = None,
        states: dict[int, Tensor] | None = None,
        features: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """From token ids to logits in one call, where it `reads_at_once`; otherwise as `run`.

        Args:
            tokens: ids to append to the cache, at least one.
            cache: what is held so far.
            wanted: of how many last tokens.
            tree: see `run`.
            states: see `run`.
            features: what is read beside the tokens, [tokens, hidden], by a model that does.

        Returns:
            logits [wanted, vocabulary] and the final states [wanted, hidden] that they come from.
        """
        raise NotImplementedError

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A buffer of a cache that this forward is to read."""
        return zeros(shape, dtype, device)

    def keep(self, cache: RollbackCache, start: int, places: Sequence[int]) -> None:
        """See `RollbackLayer.keep`, in every layer of the cache of the last `run`."""
        cache.keep(start, places)

    @abstractmethod
    def product_of(self, module: nn.Module) -> Product:
        """The product with a linear layer's matrix as fast as this knows; other modules as they are."""

    def evened_product_of(self, module: nn.Module, parts: int) -> Product | None:
        """The same of vectors whose equal parts are each brought to a root mean square of 1 first; None where that is not
        one call."""
        return None

    def chain(
        self,
        unseen: Sequence[int],
        cache: RollbackCache,
        count: int,
        stop_below: float | None,
        features: Tensor | None = None,
    ) -> tuple[list[int], Tensor] | None:
        """Appends tokens, and then its own choices one behind the other, in one call.

        Args:
            unseen: tokens to read first, at least one.
            cache: what is held so far.
            count: how many to choose at most, each the most likely token; the last one is not appended.
            stop_below: probability below which a chosen one is the last; None: all of them.
            features: what is read beside the tokens, [tokens, hidden], by a model that does.

        Returns:
            what was chosen, and the final state that the last of it was chosen from, [1, hidden]; None where this forward
            cannot, and has done nothing.
        """
        return None

    def branch(
        self,
        unseen: Sequence[int],
        cache: RollbackCache,
        count: int,
        width: TreeWidth,
        features: Tensor | None = None,
    ) -> tuple[list[Branch], int, Tensor] | None:
        """Appends tokens, and then a tree of what is most likely behind them, in one call.

        Args:
            unseen: tokens to read first, at least one.
            cache: what is held so far.
            count: how many tokens to tell at most.
            width: how the tree grows.
            features: what is read beside the tokens, [tokens, hidden], by a model that does.

        Returns:
            the tree, how many forwards it took, and the final state behind `unseen`, [1, hidden]; None where this forward
            cannot, and has done nothing.
        """
        return None

    def embedded(self, ids: Tensor) -> Tensor:
        """Embeddings [1, tokens, hidden] of token ids [1, tokens]."""
        found: Tensor = self._shape.embedding(self._model)(ids)
        return found

    def normed(self, hidden: Tensor) -> Tensor:
        """States after the final norm."""
        return self._normed(hidden, self._norm)

    def logits(self, states: Tensor) -> Tensor:
        """Logits [tokens, vocabulary] of final states [tokens, hidden]."""
        return self._shape.logits(self._model, states, self._head)

    def _head_product(self, head: nn.Module) -> Product:
        if isinstance(head, TrimmedHead):
            kept = self.product_of(head.projection)
            return lambda states: head.spread(kept(states))
        return self.product_of(head)

    def _normed(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(hidden.float(), (hidden.shape[-1],), weight, self._eps).to(hidden.dtype)


def has_plain_layers(model: PreTrainedModel) -> bool:
    """Whether every matrix has the shape that the configuration says, and kernels of our own know the activation."""
    shape, config = Architecture.of(model), model.config.get_text_config()
    size, hidden, channels = head_size(config), config.hidden_size, config.intermediate_size
    asked, shared = config.num_attention_heads * size, config.num_key_value_heads * size
    usual = [
        (asked, hidden),
        *[(shared, hidden)] * 2,
        (hidden, asked),
        *[(channels, hidden)] * 2,
        (hidden, channels),
    ]
    return _activation(model) in _GELU and all(
        [
            (getattr(one, "out_features", 0), getattr(one, "in_features", 0))
            for one in matrices_of(shape, layer)
        ]
        == usual
        for layer in shape.layers(model)
    )


def matrices_of(shape: Architecture, layer: nn.Module) -> list[nn.Module]:
    """The matrices of a decoder layer: queries, keys, values, attention output, gate, up, feed-forward output."""
    names = (*shape.block.attention_parts(), *shape.block.feed_forward_parts())
    return [layer.get_submodule(name) for name in names]


def is_gelu(model: PreTrainedModel) -> bool:
    """Whether the activation is GELU, by its tanh approximation, and not SiLU."""
    return _GELU[_activation(model)]


def _activation(model: PreTrainedModel) -> str:
    config = model.config.get_text_config()
    return str(getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None))


def head_size(config: PretrainedConfig) -> int:
    """How many numbers a query of one head has."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _rotation_types(config: PretrainedConfig) -> set[str]:
    found = config.rope_parameters
    kinds = [found] if "rope_type" in found else [one for one in found.values() if one is not None]
    return {str(one["rope_type"]) for one in kinds}
