"""A decoder whose forwards, prompts included, are one call of our own kernels (`decoder.cpp`).

The model's weights are read where they lie, in bf16 or fp32. Between the matrices everything is fp32, so this rounds less
than the model's own forward in bf16; keys and values are kept in the model's type. However tokens are divided into
forwards, chains of them give the same bits: a token proposed by a draft is verified by exactly the numbers that decoding
without drafts would have made.
"""

from __future__ import annotations

import ctypes
from copy import copy
from functools import cache
from typing import TYPE_CHECKING, TypeAlias, cast

import torch
from torch import Tensor, nn

from draftrank.decoding.runtimes.native.library import Kind, Layer, Shape, library, product
from draftrank.decoding.runtimes.packed_product import Product
from draftrank.decoding.runtimes.short_forward import MOST_TOKENS, ShortForward
from draftrank.decoding.token_tree import TokenTree
from draftrank.drafting.architecture import Architecture
from draftrank.drafting.attention_windows import FULL

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from draftrank.decoding.runtimes.torch_cache import RollbackCache

_DTYPES = (torch.bfloat16, torch.float32)
_GELU = {"silu": False, "gelu_pytorch_tanh": True}
"""Activations that are known here, by the names of configurations: whether it is GELU."""
_LARGEST_HEAD = 512
_Numbers: TypeAlias = ctypes.Array[ctypes.c_int64] | ctypes.Array[ctypes.c_uint64]


class NativeDecoder(ShortForward):
    """See `ShortForward`. On a CPU, of matrices that are as they were trained: not quantized, not factorized, without
    biases."""

    runtime = "torch-native"
    reads_prompts = True

    def __init__(self, model: PreTrainedModel) -> None:
        """See `ShortForward.__init__`.

        Raises:
            InvalidInputError: the kernels cannot be compiled.
        """
        self._library = library()
        super().__init__(model)
        config = model.config.get_text_config()
        layers = self._shape.layers(model)
        kinds = [str(kind) for kind in getattr(config, "layer_types", None) or [FULL] * len(layers)]
        self._kinds = tuple(dict.fromkeys(kinds))
        self._norms: list[Tensor] = []  # what the structures point to
        weight = _matrices(self._shape, layers[0])[0].weight
        assert isinstance(weight, Tensor)
        self._dtype = weight.dtype
        self._dimensions = Shape(
            hidden=int(config.hidden_size),
            query_heads=self._queries,
            shared_heads=self._shared,
            head_size=self._size,
            feed_forward=int(config.intermediate_size),
            gelu=_GELU[_activation(model)],
            is_bf16=self._dtype == torch.bfloat16,
            epsilon=self._eps,
            scale=self._scale,
        )
        self._layers = (Layer * len(layers))(
            *(self._layer(layer, self._kinds.index(kind)) for layer, kind in zip(layers, kinds, strict=True))
        )

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        """See `ShortForward.fits`."""
        if not ShortForward.fits(model):
            return False
        shape, config = Architecture.of(model), model.config.get_text_config()
        matrices = [matrix for layer in shape.layers(model) for matrix in _matrices(shape, layer)]
        return (
            all(map(_is_plain, matrices))
            and len({matrix.weight.dtype for matrix in matrices}) == 1
            and _activation(model) in _GELU
            and int(getattr(config, "head_dim", None) or 0) <= _LARGEST_HEAD
        )

    def first(self, count: int, view: PreTrainedModel) -> NativeDecoder:
        """See `ShortForward.first`."""
        twin = copy(self)
        twin._layers = (Layer * count)(*self._layers[:count])
        twin._model = view
        return twin

    def product_of(self, module: nn.Module) -> Product:
        """See `ShortForward.product_of`."""
        if not _is_plain(module):
            return module
        weight = module.weight
        assert isinstance(weight, Tensor)
        return lambda vectors: product(weight, vectors)

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
        self._take_buffers(cache, tokens, kept)
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

    def _take_buffers(self, cache: RollbackCache, tokens: int, kept: dict[int, Tensor]) -> None:
        """Makes room for new tokens and tells the kernels where; and where the outputs of which layers are wanted."""
        like = torch.empty(1, self._shared, 0, self._size, dtype=self._dtype)
        for number, (layer, held) in enumerate(zip(self._layers, cache.layers, strict=True)):
            held.extend(tokens, like, like)
            layer.held_keys, layer.held_values = held.keys.data_ptr(), held.values.data_ptr()
            layer.capacity = held.capacity
            layer.output = _address(kept.get(number))

    def _seen(self, kind: str, root: int, tokens: int, tree: TokenTree) -> tuple[Tensor | _Numbers, ...]:
        """Rotations of the last `tokens` of a tree, and what they see; see `Kind` of `decoder.cpp`."""
        cosine, sine = self._rotation_tables(kind, root + len(tree.parents))
        depths = tree.depths[-tokens:]
        positions = torch.tensor([root + depth for depth in depths])
        window = self._windows[kind]
        first = [0 if window is None else max(0, root + depth - window + 1) for depth in depths]
        kin = tree.kin[-tokens:]
        if window is not None and max(depths) >= window:
            kin = tuple(
                bits & sum(1 << place for place, other in enumerate(tree.depths) if other > depth - window)
                for bits, depth in zip(kin, depths, strict=True)
            )
        return (
            cosine[positions],
            sine[positions],
            (ctypes.c_int64 * tokens)(*first),
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
        matrices = [matrix.weight.data_ptr() for matrix in _matrices(self._shape, layer)]
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


def _is_plain(module: nn.Module) -> bool:
    """Whether the kernels can multiply by its weight."""
    if type(module) is not nn.Linear or getattr(module, "bias", None) is not None:
        return False
    weight = module.weight
    return weight.device.type == "cpu" and weight.dtype in _DTYPES and weight.is_contiguous()


def _matrices(shape: Architecture, layer: nn.Module) -> list[nn.Linear]:
    """The matrices of a decoder layer, in the order of `Layer`."""
    names = (*shape.block.attention_parts(), *shape.block.feed_forward_parts())
    return [cast("nn.Linear", layer.get_submodule(name)) for name in names]


def _activation(model: PreTrainedModel) -> str:
    config = model.config.get_text_config()
    return str(getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None))


@cache
def _chain(tokens: int) -> TokenTree:
    return TokenTree(tuple(range(-1, tokens - 1)))


def _address(found: Tensor | _Numbers | None) -> int | None:
    if found is None:
        return None
    return found.data_ptr() if isinstance(found, Tensor) else ctypes.addressof(found)
