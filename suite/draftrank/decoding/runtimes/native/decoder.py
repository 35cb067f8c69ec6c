"""A decoder whose forwards, prompts included, are one call of our own kernels (`decoder.cpp`).

Matrices are read from a packed copy, in the order in which it lies. Between them everything is fp32, so this rounds less
than the model's own forward in bf16; keys and values are kept in the model's type, and what multiplies bf16 matrices is
rounded to it where the processor has instructions for that. However tokens are divided into forwards, and wherever
in a tree they lie, they give the same bits: a token proposed by a draft is verified by exactly the numbers that decoding
without drafts would have made.
"""

from __future__ import annotations

import ctypes
from copy import copy
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized.dynamic import Linear as DynamicInt8Linear

from draftrank.decoding.runtimes.native.library import KINDS, Kind, Layer, Shape, Weights, library
from draftrank.decoding.runtimes.native.pages import Pages
from draftrank.decoding.runtimes.packed_product import Product
from draftrank.decoding.runtimes.short_forward import (
    MOST_TOKENS,
    ShortForward,
    has_plain_layers,
    head_size,
    is_gelu,
    matrices_of,
)
from draftrank.decoding.token_tree import TokenTree
from draftrank.drafting.architecture import Architecture
from draftrank.drafting.attention_windows import FULL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from draftrank.decoding.runtimes.torch_cache import RollbackCache

_LARGEST_HEAD = 512
_Numbers: TypeAlias = ctypes.Array[ctypes.c_int64] | ctypes.Array[ctypes.c_uint64]


class NativeDecoder(ShortForward):
    """See `ShortForward`. On a CPU, of matrices without biases in bf16, in fp32, or all in torch's dynamic int8, whose
    activations are left in fp32 here."""

    runtime = "torch-native"
    reads_prompts = True

    def __init__(self, model: PreTrainedModel) -> None:
        """See `ShortForward.__init__`.

        Raises:
            InvalidInputError: the kernels cannot be compiled.
        """
        self._library = library()
        self._pages = Pages()
        super().__init__(model)
        config = model.config.get_text_config()
        layers = self._shape.layers(model)
        kinds = [str(kind) for kind in getattr(config, "layer_types", None) or [FULL] * len(layers)]
        self._kinds = tuple(dict.fromkeys(kinds))
        self._norms: list[Tensor] = []  # what the structures point to
        self._matrices: list[Weights] = []
        stored = _stored_as(matrices_of(self._shape, layers[0])[0])
        assert stored is not None
        self._dtype = torch.bfloat16 if stored == torch.bfloat16 else torch.float32
        self._dimensions = Shape(
            hidden=int(config.hidden_size),
            query_heads=self._queries,
            shared_heads=self._shared,
            head_size=self._size,
            feed_forward=int(config.intermediate_size),
            gelu=is_gelu(model),
            weights=KINDS[stored],
            epsilon=self._eps,
            scale=self._scale,
        )
        self._layers = (Layer * len(layers))(
            *(self._layer(layer, self._kinds.index(kind)) for layer, kind in zip(layers, kinds, strict=True))
        )

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        """See `ShortForward.fits`."""
        if not ShortForward.fits(model) or not has_plain_layers(model):
            return False
        shape = Architecture.of(model)
        kinds = {_stored_as(matrix) for layer in shape.layers(model) for matrix in matrices_of(shape, layer)}
        return (
            None not in kinds
            and len(kinds) == 1
            and head_size(model.config.get_text_config()) <= _LARGEST_HEAD
        )

    def first(self, count: int, view: PreTrainedModel) -> NativeDecoder:
        """See `ShortForward.first`."""
        twin = copy(self)
        twin._layers = (Layer * count)(*self._layers[:count])
        twin._model = view
        return twin

    def product_of(self, module: nn.Module) -> Product:
        """See `ShortForward.product_of`."""
        return module if _stored_as(module) is None else _weights(module, self._pages).times

    def run(
        self,
        inputs: Tensor,
        cache: RollbackCache,
        tree: TokenTree | None = None,
        states: dict[int, Tensor] | None = None,
    ) -> Tensor:
        """See `ShortForward.run`; all in fp32."""
        read = inputs.float().contiguous()
        outputs = {number: torch.empty_like(read) for number in states or () if number >= 0}
        final = torch.empty_like(read)
        for begin in range(0, len(read), MOST_TOKENS):
            part = slice(begin, begin + MOST_TOKENS)
            kept = {number: output[part] for number, output in outputs.items()}
            self._forward(read[part], final[part], cache, tree, kept)
        if states is not None:
            states.update(outputs)
        return final

    def keep(self, cache: RollbackCache, start: int, places: Sequence[int]) -> None:
        """See `ShortForward.keep`."""
        if list(places) != list(range(len(places))):
            self._point_to(cache)
            self._library.draftrank_keep(
                ctypes.byref(self._dimensions),
                self._layers,
                len(self._layers),
                start,
                (ctypes.c_int64 * len(places))(*places),
                len(places),
            )
        for layer in cache.layers:
            layer.length = start + len(places)

    def _forward(
        self,
        read: Tensor,
        final: Tensor,
        cache: RollbackCache,
        tree: TokenTree | None,
        kept: dict[int, Tensor],
    ) -> None:
        start, tokens = cache.length, len(read)
        shape = _chain(tokens) if tree is None else tree
        root = start + tokens - len(shape.parents)
        like = torch.empty(1, self._shared, 0, self._size, dtype=self._dtype)
        for held in cache.layers:
            held.extend(tokens, like, like)
        self._point_to(cache)
        for number, layer in enumerate(self._layers):
            layer.output = _address(kept.get(number))
        seen = [self._seen(kind, root, tokens, shape) for kind in self._kinds]
        kinds = (Kind * len(seen))(*(Kind(*(_address(part) for part in parts)) for parts in seen))
        self._library.draftrank_forward(
            ctypes.byref(self._dimensions),
            self._layers,
            len(self._layers),
            kinds,
            read.data_ptr(),
            final.data_ptr(),
            tokens,
            start,
            root,
            torch.get_num_threads(),
        )

    def _point_to(self, cache: RollbackCache) -> None:
        for layer, held in zip(self._layers, cache.layers, strict=True):
            layer.held_keys, layer.held_values = held.keys.data_ptr(), held.values.data_ptr()
            layer.capacity = held.capacity

    def _seen(self, kind: str, root: int, tokens: int, tree: TokenTree) -> tuple[Tensor | _Numbers, ...]:
        """Rotations of the last `tokens` of a tree, and what they see; see `Kind` of `decoder.cpp`."""
        cosine, sine = self._rotation_tables(kind, root + len(tree.parents))
        positions = [root + depth for depth in tree.depths[-tokens:]]
        window = self._windows[kind]
        first = [0 if window is None else max(0, position - window + 1) for position in positions]
        kin = tree.kin[-tokens:]
        if window is not None and max(positions) - root >= window:
            near = [
                sum(1 << place for place, depth in enumerate(tree.depths) if root + depth >= farthest)
                for farthest in first
            ]
            kin = tuple(bits & seen for bits, seen in zip(kin, near, strict=True))
        many = ctypes.c_int64 * tokens
        return (
            cosine[positions],
            sine[positions],
            many(*positions),
            many(*first),
            (ctypes.c_uint64 * tokens)(*kin),
        )

    def _rotation_dtype(self, weight: Tensor) -> torch.dtype:
        return torch.float32

    def _layer(self, layer: nn.Module, kind: int) -> Layer:
        names = self._shape.block
        attention = getattr(layer, names.attention)
        norms = [self._held(self._weight(getattr(layer, name))) for name in names.norms]
        gemma = len(norms) > 2  # its blocks are normed before and after
        heads = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        found = [_weights(matrix, self._pages) for matrix in matrices_of(self._shape, layer)]
        self._matrices += found
        matrices = [weights.matrix() for weights in found]
        queries, keys, values, attention_output, gate, up, feed_forward_output = matrices
        query_norm, key_norm = (None if norm is None else self._held(self._weight(norm)) for norm in heads)
        return Layer(
            attention_norm=norms[0],
            queries=queries,
            keys=keys,
            values=values,
            attention_output=attention_output,
            query_norm=query_norm,
            key_norm=key_norm,
            attention_output_norm=norms[1] if gemma else None,
            feed_forward_norm=norms[2] if gemma else norms[1],
            gate=gate,
            up=up,
            feed_forward_output=feed_forward_output,
            feed_forward_output_norm=norms[3] if gemma else None,
            kind=kind,
        )

    def _held(self, norm: Tensor) -> int:
        self._norms.append(norm.contiguous())
        return self._norms[-1].data_ptr()


def _stored_as(module: nn.Module) -> torch.dtype | None:
    """The type of a linear layer's weight; None where the kernels cannot multiply by it."""
    if isinstance(module, DynamicInt8Linear):
        parts = cast("Any", module)
        if parts.bias() is not None:
            return None
        weight = parts.weight()
        even = weight.qscheme() == torch.per_channel_affine and not weight.q_per_channel_zero_points().any()
        return torch.int8 if even else None
    if type(module) is not nn.Linear or getattr(module, "bias", None) is not None:
        return None
    plain = module.weight.device.type == "cpu" and module.weight.is_contiguous()
    return module.weight.dtype if plain and module.weight.dtype in KINDS else None


def _weights(module: nn.Module, pages: Pages) -> Weights:
    if isinstance(module, DynamicInt8Linear):
        weight = cast("Any", module).weight()
        return Weights(weight.int_repr(), weight.q_per_channel_scales(), pages)
    assert isinstance(module, nn.Linear)
    return Weights(module.weight, None, pages)


@cache
def _chain(tokens: int) -> TokenTree:
    return TokenTree(tuple(range(-1, tokens - 1)))


def _address(found: Tensor | _Numbers | None) -> int | None:
    if found is None:
        return None
    return found.data_ptr() if isinstance(found, Tensor) else ctypes.addressof(found)
