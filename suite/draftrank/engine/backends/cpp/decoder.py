"""A decoder whose forwards, prompts included, are one call of our own kernels (`decoder.cpp`).

Matrices are read from a packed copy, in the order in which it lies. Between them everything is fp32, so this rounds less
than the model's own forward in bf16; keys and values are kept in the model's type, and what multiplies bf16 matrices is
rounded to it where the processor has instructions for that. Keys lie in the cache as matrices do, packed, and values by
twos, so no other forward may go on with it. However tokens are divided into forwards, and wherever
in a tree they lie, they give the same bits: a token proposed by a draft is verified by exactly the numbers that decoding
without drafts would have made.
"""

from __future__ import annotations

import ctypes
from copy import copy
from functools import partial
from math import prod
from operator import is_
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized.dynamic import Linear as DynamicInt8Linear

from draftrank.engine.backends.cpp.library import (
    KINDS,
    Candidate,
    Ends,
    Layer,
    Positions,
    Shape,
    Typed,
    Weights,
    checked,
    library,
    normed,
)
from draftrank.engine.backends.cpp.pages import Pages
from draftrank.engine.backends.packed_product import Product
from draftrank.engine.backends.short_forward import (
    MAX_TOKENS,
    ShortForward,
    has_plain_layers,
    head_size,
    is_gelu,
    matrices_of,
)
from draftrank.engine.token_tree import Branch, TokenTree, TreeWidth
from draftrank.models.architecture import Architecture
from draftrank.models.attention_windows import layer_kinds
from draftrank.models.forms import FEATURES, TrimmedHead

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedModel

    from draftrank.engine.backends.transformers.cache import RollbackCache

_MAX_HEAD_SIZE = 512


class NativeDecoder(ShortForward):
    """See `ShortForward`. On a CPU, of matrices without biases in bf16, in fp32, or all in torch's dynamic int8, whose
    activations are left in fp32 here."""

    runtime = "cpp"
    reads_prompts = True

    def __init__(self, model: PreTrainedModel) -> None:
        """See `ShortForward.__init__`.

        Raises:
            InvalidInputError: the kernels cannot be compiled.
        """
        self._library = library()
        self._pages, self._pages_of_caches = Pages(), Pages()
        self._packed: dict[nn.Module, Weights] = {}
        self._held: list[Tensor] = []  # what the structures point to
        self._pointed_to: list[Tensor] = []
        self._told: set[int] = set()  # layers that leave their outputs somewhere
        self._spread: Callable[[Tensor], Tensor] | None = None
        super().__init__(model)
        config = model.config.get_text_config()
        layers = self._shape.layers(model)
        kinds = layer_kinds(config)
        self._kinds = tuple(dict.fromkeys(kinds))
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
        self._ends = self._ends_of(model)

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        """See `ShortForward.fits`."""
        if not ShortForward.fits(model) or not has_plain_layers(model):
            return False
        shape = Architecture.of(model)
        kinds = {_stored_as(matrix) for layer in shape.layers(model) for matrix in matrices_of(shape, layer)}
        head = shape.head(model)
        return (
            None not in kinds
            and _stored_as(head.projection if isinstance(head, TrimmedHead) else head) is not None
            and len(kinds) == 1
            and head_size(model.config.get_text_config()) <= _MAX_HEAD_SIZE
        )

    def first(self, count: int, view: PreTrainedModel) -> NativeDecoder:
        """See `ShortForward.first`."""
        twin = copy(self)
        twin._layers = (Layer * count)(*self._layers[:count])
        twin._pointed_to, twin._told = [], set()
        twin._model = view
        return twin

    def product_of(self, module: nn.Module) -> Product:
        """See `ShortForward.product_of`."""
        return module if _stored_as(module) is None else self._weights(module).times

    def evened_product_of(self, module: nn.Module, parts: int) -> Product | None:
        """See `ShortForward.evened_product_of`."""
        return None if _stored_as(module) is None else partial(self._weights(module).times, evened=parts)

    def normed(self, hidden: Tensor) -> Tensor:
        """See `ShortForward.normed`."""
        return normed(hidden, self._norm, self._eps)

    def run(
        self,
        inputs: Tensor,
        cache: RollbackCache,
        tree: TokenTree | None = None,
        states: dict[int, Tensor] | None = None,
    ) -> Tensor:
        """See `ShortForward.run`; all in fp32."""
        read = inputs.float().contiguous()
        outputs = self._outputs_for(len(read), states)
        final = torch.empty_like(read)
        for begin in range(0, len(read), MAX_TOKENS):
            part = read[begin : begin + MAX_TOKENS]
            fed, start = len(part), cache.length
            self._extend(cache, fed)
            self._tell(outputs, begin)
            checked(
                self._library.draftrank_forward(
                    *self._layers_before(cache.length),
                    part.data_ptr(),
                    fed,
                    start,
                    *_places(fed, tree),
                    final[begin:].data_ptr(),
                    torch.get_num_threads(),
                )
            )
        return final

    def read(
        self,
        tokens: Sequence[int],
        cache: RollbackCache,
        wanted: int,
        tree: TokenTree | None = None,
        states: dict[int, Tensor] | None = None,
        features: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `ShortForward.read`; all in fp32."""
        assert self._ends is not None
        fed, start = len(tokens), cache.length
        self._extend(cache, fed)
        self._tell(self._outputs_for(fed, states), 0)
        final = self._states_for(fed, fed, features)
        logits = torch.empty(wanted, self._ends.head.outputs)
        result = self._library.draftrank_read(
            *self._layers_before(cache.length),
            ctypes.byref(self._ends),
            (ctypes.c_int64 * fed)(*tokens),
            fed,
            final.data_ptr(),
            start,
            *_places(fed, tree),
            wanted,
            logits.data_ptr(),
            torch.get_num_threads(),
        )
        self._check(result, tokens, cache, start)
        return logits if self._spread is None else self._spread(logits), final[:wanted]

    def reads_at_once(self, tokens: int) -> bool:
        """See `ShortForward.reads_at_once`."""
        return self._ends is not None and tokens <= MAX_TOKENS

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """See `ShortForward.zeros`."""
        return self._pages_of_caches.take(prod(shape), dtype).view(*shape)

    def keep(self, cache: RollbackCache, start: int, places: Sequence[int]) -> None:
        """See `ShortForward.keep`."""
        if list(places) != list(range(len(places))):
            self._point_to(cache)
            checked(
                self._library.draftrank_keep(
                    ctypes.byref(self._dimensions),
                    self._layers,
                    len(self._layers),
                    start,
                    (ctypes.c_int64 * len(places))(*places),
                    len(places),
                )
            )
        for layer in cache.layers:
            layer.length = start + len(places)

    def chain(
        self,
        unseen: Sequence[int],
        cache: RollbackCache,
        count: int,
        stop_below: float | None,
        features: Tensor | None = None,
    ) -> tuple[list[int], Tensor] | None:
        """See `ShortForward.chain`."""
        fed, ends = len(unseen), self._ends
        if ends is None or fed > MAX_TOKENS:
            return None
        start = cache.length
        self._extend(cache, fed + count - 1)
        states = self._states_for(1, fed, features)
        chosen = (ctypes.c_int64 * count)()
        made = self._library.draftrank_chain(
            *self._layers_before(cache.length),
            ctypes.byref(ends),
            (ctypes.c_int64 * fed)(*unseen),
            fed,
            states.data_ptr(),
            start,
            count,
            0.0 if stop_below is None else stop_below,
            chosen,
            torch.get_num_threads(),
        )
        self._check(made, unseen, cache, start)
        cache.forget(count - made)
        return chosen[:made], states[:1]

    def branch(
        self,
        unseen: Sequence[int],
        cache: RollbackCache,
        count: int,
        width: TreeWidth,
        features: Tensor | None = None,
    ) -> tuple[list[Branch], int, Tensor] | None:
        """See `ShortForward.branch`."""
        fed, ends = len(unseen), self._ends
        if ends is None or fed > MAX_TOKENS or width.most > ends.head.outputs:
            return None
        start, room = cache.length, fed + MAX_TOKENS
        self._extend(cache, room)
        states = self._states_for(1, fed, features)
        candidates, read = (Candidate * count)(), (ctypes.c_int64 * 2)()
        found = self._library.draftrank_branch(
            *self._layers_before(cache.length),
            ctypes.byref(ends),
            (ctypes.c_int64 * fed)(*unseen),
            fed,
            states.data_ptr(),
            start,
            count,
            -1.0 if width.stop_below is None else width.stop_below,
            width.branch_above,
            width.most,
            width.expanded,
            candidates,
            read,
            torch.get_num_threads(),
        )
        self._check(found, unseen, cache, start)
        forwards, held = read
        cache.forget(room - held)
        told = [Branch(one.token, one.parent, one.place) for one in candidates[:found]]
        return told, forwards, states[:1]

    def _check(self, result: int, ids: Sequence[int], cache: RollbackCache, start: int) -> None:
        """See `checked`; where a kernel refuses, the cache holds what it held at `start`."""
        assert self._ends is not None
        if result < 0:
            cache.forget(cache.length - start)
        checked(result, ids, self._ends.rows)

    def _layers_before(self, end: int) -> tuple[Any, ...]:
        """What kernels are told of the layers: them, and how every position before `end` is rotated and what it sees, by
        kind of attention."""
        tables = [(*self._rotation_tables(kind, end), self._windows[kind]) for kind in self._kinds]
        positions = (Positions * len(tables))(
            *(
                Positions(cosine.data_ptr(), sine.data_ptr(), window or 0, len(cosine))
                for cosine, sine, window in tables
            )
        )
        dimensions = ctypes.byref(self._dimensions)
        return dimensions, self._layers, len(self._layers), positions, len(positions)

    def _outputs_for(self, tokens: int, states: dict[int, Tensor] | None) -> dict[int, Tensor]:
        """Where layers leave their outputs, [tokens, hidden]; `states` get them."""
        outputs = {
            number: torch.empty(tokens, self._dimensions.hidden) for number in states or () if number >= 0
        }
        if states is not None:
            states.update(outputs)
        return outputs

    def _tell(self, outputs: dict[int, Tensor], begin: int) -> None:
        """The same to the layers, from a token on."""
        for number in self._told - outputs.keys():
            self._layers[number].output = None
        for number, output in outputs.items():
            self._layers[number].output = output[begin:].data_ptr()
        self._told = set(outputs)

    def _states_for(self, told: int, fed: int, features: Tensor | None) -> Tensor:
        """What the kernels read beside `fed` tokens, [fed, hidden], and overwrite with `told` final states."""
        assert self._ends is not None
        hidden = self._dimensions.hidden
        assert bool(self._ends.fused) == (features is not None)
        if features is None:
            return torch.empty(told, hidden)
        if features.shape != (fed, hidden):
            raise ValueError(f"beside {fed} tokens of width {hidden} stand features {tuple(features.shape)}")
        return features.to(torch.float32, copy=True)

    def _extend(self, cache: RollbackCache, tokens: int) -> None:
        """Makes room for more tokens."""
        end, last = cache.length + tokens, cache.layers[-1]
        # An exit that shares the first layers may have more room in these than the target has in the others.
        if last.is_initialized and end <= last.capacity:
            for held in cache.layers:
                held.length = end
        else:
            like = torch.empty(1, self._shared, 0, self._size, dtype=self._dtype)
            for held in cache.layers:
                held.extend(tokens, like, like)
        self._point_to(cache)

    def _point_to(self, cache: RollbackCache) -> None:
        keys = [held.keys for held in cache.layers]
        if len(keys) == len(self._pointed_to) and all(map(is_, keys, self._pointed_to)):
            return
        for layer, held in zip(self._layers, cache.layers, strict=True):
            layer.held_keys, layer.held_values = held.keys.data_ptr(), held.values.data_ptr()
            layer.capacity = held.capacity
        self._pointed_to = keys

    def _rotation_dtype(self, weight: Tensor) -> torch.dtype:
        return torch.float32

    def _layer(self, layer: nn.Module, kind: int) -> Layer:
        names = self._shape.block
        attention = getattr(layer, names.attention)
        norms = [self._hold(self._weight(getattr(layer, name))) for name in names.norms]
        gemma = len(norms) > 2  # its blocks are normed before and after
        heads = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        matrices = [self._weights(matrix).matrix() for matrix in matrices_of(self._shape, layer)]
        queries, keys, values, attention_output, gate, up, feed_forward_output = matrices
        query_norm, key_norm = (None if norm is None else self._hold(self._weight(norm)) for norm in heads)
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

    def _ends_of(self, model: PreTrainedModel) -> Ends | None:
        """What stands around the layers; None where `decoder.cpp` does not know it."""
        embedding, head = self._shape.embedding(model), self._shape.head(model)
        token_ids: Tensor | None = None
        if isinstance(head, TrimmedHead):
            token_ids, self._spread = head.token_ids, head.spread
            head = head.projection
        weight = embedding.weight
        assert isinstance(weight, Tensor)
        scale: Tensor | None = getattr(embedding, "embed_scale", None)
        capped = getattr(model.config.get_text_config(), "final_logit_softcapping", None) is not None
        if _stored_as(head) is None or capped or weight.dtype not in (torch.float32, torch.bfloat16):
            return None
        fusion = dict(model.named_children()).get(FEATURES)
        projection = None if fusion is None else fusion.get_submodule("projection")
        if projection is not None and _stored_as(projection) is None:
            return None
        return Ends(
            embedding=self._hold(weight.detach()),
            rows=len(weight),
            bf16=weight.dtype == torch.bfloat16,
            scale=1.0 if scale is None else float(scale.to(weight.dtype)),
            fused=projection is not None,
            projection=Typed() if projection is None else self._weights(projection).typed(),
            norm=self._hold(self._norm),
            head=self._weights(head).typed(),
            token_ids=None if token_ids is None else self._hold(token_ids),
        )

    def _weights(self, module: nn.Module) -> Weights:
        """A linear layer's matrix, packed once."""
        if module not in self._packed:
            if isinstance(module, DynamicInt8Linear):
                weight = cast("Any", module).weight()
                packed = Weights(weight.int_repr(), weight.q_per_channel_scales(), self._pages)
            else:
                assert isinstance(module, nn.Linear)
                packed = Weights(module.weight, None, self._pages)
            self._packed[module] = packed
        return self._packed[module]

    def _hold(self, tensor: Tensor) -> int:
        """Where it lies as long as this decoder lives."""
        self._held.append(tensor.contiguous())
        return self._held[-1].data_ptr()


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
    plain = module.weight.device.type in ("cpu", "meta") and module.weight.is_contiguous()
    return module.weight.dtype if plain and module.weight.dtype in KINDS else None


def _places(fed: int, tree: TokenTree | None) -> tuple[ctypes.Array[ctypes.c_int64] | None, int]:
    """Each place's parent, and how many there are; a chain has none but what is fed."""
    if tree is None:
        return None, fed
    places = len(tree.parents)
    return (ctypes.c_int64 * places)(*tree.parents), places
