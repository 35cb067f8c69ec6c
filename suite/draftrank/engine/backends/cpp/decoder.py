"""A decoder whose forwards, prompts included, are one call of our own kernels (`decoder.cpp`).

Matrices are read from a packed copy, in the order in which it lies. Between them everything is fp32, so this rounds less
than the model's own forward in bf16; keys and values are kept in the model's type, or in bf16 beside blocks of a GGUF file,
which are multiplied as they lie in the file. What multiplies bf16 matrices or blocks is rounded to bf16 where the processor
has instructions for that. Keys lie in the cache as matrices do, packed, and values by twos, so no other forward may go on
with it. However tokens are divided into forwards, and wherever in a tree they lie, they give the same bits: a token proposed
by a draft is verified by exactly the numbers that decoding without drafts would have made.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from copy import copy
from math import prod
from operator import is_
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized.dynamic import Linear as DynamicInt8Linear

from draftrank.engine.backends.blocks import Block, DecoderShape, Linear, blocks_of, is_gelu
from draftrank.engine.backends.cpp.library import (
    BLOCK_TYPES,
    KINDS,
    Biased,
    Candidate,
    Ends,
    Layer,
    Pages,
    Positions,
    Shape,
    Typed,
    Weights,
    checked,
    library,
    normed,
)
from draftrank.engine.token_tree import MAX_TREE_TOKENS, Branch, TokenTree, TreeWidth
from draftrank.models.architecture import Architecture
from draftrank.models.attention_windows import head_size
from draftrank.models.eagle import eagle3_layer
from draftrank.models.forms import LowRankLinear, TrimmedHead
from draftrank.models.gguf_blocks import BlockEmbedding, BlockLinear

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from draftrank.engine.backends.kv_cache import RollbackCache

MAX_TOKENS = MAX_TREE_TOKENS
"""Most tokens of one call of the kernels; longer texts take several."""
_MAX_HEAD_SIZE = 512
Product = Callable[[Tensor], Tensor]
"""[rows, inputs] to [rows, outputs]."""


class CppDecoder(DecoderShape):
    """A decoder on a CPU, its matrices in bf16, in fp32, in the blocks of a GGUF file, or all in torch's dynamic int8, whose
    activations are left in fp32 here. What it returns is fp32."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Packs the model's matrices; `fits` says which models can be given.

        Raises:
            InvalidInputError: the kernels cannot be compiled.
        """
        self._library = library()
        self._pages, self._pages_of_caches = Pages(), Pages()
        self._packed: dict[Linear, Weights] = {}
        self._held: list[Tensor] = []  # what the structures point to
        self._pointed_to: list[Tensor] = []
        self._told: set[int] = set()  # layers that leave their outputs somewhere
        self._spread: Callable[[Tensor], Tensor] | None = None
        super().__init__(model)
        config = model.config.get_text_config()
        blocks = blocks_of(model)
        self._kinds = tuple(dict.fromkeys((block.kind, block.rotary) for block in blocks))
        head = eagle3_layer(model)
        self.paired = head is not None
        """Whether each row of the input is an embedding and a state; the final states are then left without the norm."""
        stored = _stored_as(blocks[0].queries.module)
        assert stored is not None
        self._dtype = torch.bfloat16 if stored in (torch.bfloat16, torch.uint8) else torch.float32
        self._dimensions = Shape(
            hidden=int(config.hidden_size),
            query_heads=self._queries,
            kv_heads=self._kv_heads,
            head_size=self._size,
            rotary=self._rotation_tables(*self._kinds[0], 1)[0].shape[-1],
            feed_forward=int(config.intermediate_size),
            gelu=is_gelu(model),
            weights=KINDS[stored],
            epsilon=self._eps,
            input_scale=self._input_scale,
            paired=self.paired,
            norm_before_residual=head is not None and head.norm_before_residual,
        )
        self._layers = (Layer * len(blocks))(*(self._layer(block) for block in blocks))
        self._ends = self._ends_of(model)

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        """Whether the kernels know this model's forward; see `DecoderShape.fits`."""
        if not DecoderShape.fits(model):
            return False
        shape = Architecture.of(model)
        kinds = {_stored_as(matrix.module) for block in blocks_of(model) for matrix in block.matrices}
        return (
            None not in kinds
            and all(_multiplies(part) for part in _parts_of(shape.head(model)))
            and _block_type_is_known(shape.embedding(model))
            and len(kinds) == 1
            and head_size(model.config.get_text_config()) <= _MAX_HEAD_SIZE
        )

    @property
    def whole(self) -> bool:
        """Whether the kernels know what stands around the layers too, so that `read`, `chain` and `grow_tree` can be called:
        not where a trimmed head's logits are softcapped, since that gives the tokens left out a logit too."""
        return self._ends is not None

    def first(self, count: int, view: PreTrainedModel) -> CppDecoder:
        """The first `count` layers alone, as `view` has them; they share all weights."""
        twin = copy(self)
        twin._layers = (Layer * count)(*self._layers[:count])
        for layer in twin._layers:
            layer.output = None
        twin._pointed_to, twin._told = [], set()
        twin._model = view
        return twin

    def product_of(self, module: nn.Module) -> Product:
        """The product with a linear layer's matrix; other modules as they are."""
        return self._weights(_whole(module)).times if _multiplies(module) else module

    def embedded(self, tokens: Sequence[int]) -> Tensor:
        """Embeddings [tokens, hidden] of token ids."""
        found: Tensor = self._shape.embedding(self._model)(torch.tensor([tokens]))
        return found[0]

    def normed(self, hidden: Tensor) -> Tensor:
        """States after the final norm."""
        return normed(hidden, self._norm, self._eps)

    def logits(self, states: Tensor) -> Tensor:
        """Logits [tokens, vocabulary] of final states [tokens, hidden]."""
        if self._ends is None:
            head = self._shape.head(self._model)
            for part in _parts_of(head):
                states = self.product_of(part)(states)
            spread = head.spread if isinstance(head, TrimmedHead) else (lambda logits: logits)
            return self._shape.logits(self._model, states, spread)
        read = states.float().contiguous()
        made = torch.empty(len(read), self._ends.head.outputs)
        self._library.draftrank_logits(
            ctypes.byref(self._dimensions),
            ctypes.byref(self._ends),
            read.data_ptr(),
            len(read),
            made.data_ptr(),
            torch.get_num_threads(),
        )
        return made if self._spread is None else self._spread(made)

    def run(
        self,
        inputs: Tensor,
        cache: RollbackCache,
        tree: TokenTree | None = None,
        outputs: dict[int, Tensor] | None = None,
    ) -> Tensor:
        """Appends tokens to the KV cache, layers only.

        Args:
            inputs: what the first layer reads, [tokens, hidden], or [tokens, 2 · hidden] where it is `paired`; with a tree at
                most `MAX_TOKENS`.
            cache: the KV cache; its buffers come from `zeros`.
            tree: how the tokens follow each other, see `Runtime.forward`; None: as a chain.
            outputs: by the numbers of layers, whose outputs replace what is there.

        Returns:
            states after the last layer, [tokens, hidden]; `normed` makes them final.
        """
        read = inputs.float().contiguous()
        told = self._outputs_for(len(read), outputs)
        final = torch.empty(len(read), self._dimensions.hidden)
        for begin in range(0, len(read), MAX_TOKENS):
            part = read[begin : begin + MAX_TOKENS]
            count, start = len(part), cache.length
            self._extend(cache, count)
            self._tell(told, begin)
            checked(
                self._library.draftrank_forward(
                    *self._layers_before(cache.length),
                    part.data_ptr(),
                    count,
                    start,
                    *_parents(count, tree),
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
        outputs: dict[int, Tensor] | None = None,
        beside: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """From token ids to logits in one call, where the decoder is `whole`.

        Args:
            tokens: ids to append to the KV cache, 1 to `MAX_TOKENS`.
            cache: see `run`.
            wanted: of how many last tokens.
            tree: see `run`.
            outputs: see `run`.
            beside: hidden states that an EAGLE-3 head reads beside the tokens, [tokens, hidden].

        Returns:
            logits [wanted, vocabulary] and the final states [wanted, hidden] that they come from.
        """
        assert self._ends is not None
        count = len(tokens)
        self._tell(self._outputs_for(count, outputs), 0)
        final = self._states_for(count, count, beside)
        logits = torch.empty(wanted, self._ends.head.outputs)
        rest = (*_parents(count, tree), wanted, logits.data_ptr())
        self._from_tokens(self._library.draftrank_read, tokens, cache, count, final, *rest)
        return logits if self._spread is None else self._spread(logits), final[:wanted]

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A buffer of a KV cache, in huge pages."""
        return self._pages_of_caches.take(prod(shape), dtype).view(*shape)

    def keep(self, cache: RollbackCache, root: int, path: Sequence[int]) -> None:
        """See `Runtime.commit`."""
        if list(path) != list(range(len(path))):
            self._point_to(cache)
            checked(
                self._library.draftrank_keep(
                    ctypes.byref(self._dimensions),
                    self._layers,
                    len(self._layers),
                    root,
                    (ctypes.c_int64 * len(path))(*path),
                    len(path),
                )
            )
        for layer in cache.layers:
            layer.length = root + len(path)

    def chain(
        self,
        unseen: Sequence[int],
        cache: RollbackCache,
        count: int,
        stop_below: float | None,
        beside: Tensor | None = None,
    ) -> tuple[list[int], Tensor]:
        """See `Runtime.chain`; at most `MAX_TOKENS` unseen tokens.

        Returns:
            what was chosen, and the final state that the last of it was chosen from, [1, hidden].
        """
        states = self._states_for(1, len(unseen), beside)
        chosen = (ctypes.c_int64 * count)()
        how = (count, 0.0 if stop_below is None else stop_below, chosen)
        room = len(unseen) + count - 1
        made = self._from_tokens(self._library.draftrank_chain, unseen, cache, room, states, *how)
        cache.rollback(count - made)
        return chosen[:made], states[:1]

    def grow_tree(
        self,
        unseen: Sequence[int],
        cache: RollbackCache,
        count: int,
        width: TreeWidth,
        beside: Tensor | None = None,
    ) -> tuple[list[Branch], int, Tensor]:
        """See `Runtime.grow_tree`; at most `MAX_TOKENS` unseen tokens.

        Returns:
            the tree, how many forwards it took, and the final state of the last unseen token, [1, hidden].
        """
        assert self._ends is not None
        room = len(unseen) + MAX_TOKENS
        states = self._states_for(1, len(unseen), beside)
        candidates, made = (Candidate * count)(), (ctypes.c_int64 * 2)()
        how = (
            count,
            -1.0 if width.stop_below is None else width.stop_below,
            width.branch_above,
            min(width.most, self._ends.head.outputs),
            width.expanded,
            candidates,
            made,
        )
        found = self._from_tokens(self._library.draftrank_branch, unseen, cache, room, states, *how)
        forwards, appended = made
        cache.rollback(room - appended)
        told = [Branch(one.token, one.parent, one.draft_index) for one in candidates[:found]]
        return told, forwards, states[:1]

    def _from_tokens(
        self,
        kernel: Callable[..., int],
        tokens: Sequence[int],
        cache: RollbackCache,
        room: int,
        states: Tensor,
        *rest: Any,
    ) -> int:
        """What a kernel gives (see `checked`) that reads tokens behind the cache, which is extended by `room`; where it
        refuses, the cache holds what it held. For `states` see `_states_for`."""
        assert self._ends is not None
        start = cache.length
        self._extend(cache, room)
        result = kernel(
            *self._layers_before(cache.length),
            ctypes.byref(self._ends),
            (ctypes.c_int64 * len(tokens))(*tokens),
            len(tokens),
            states.data_ptr(),
            start,
            *rest,
            torch.get_num_threads(),
        )
        if result < 0:
            cache.rollback(cache.length - start)
        return checked(result, tokens, self._ends.rows)

    def _layers_before(self, end: int) -> tuple[Any, ...]:
        """What kernels are told of the layers: them, and how every position before `end` is rotated and what it sees, by
        kind of attention."""
        tables = [
            (*self._rotation_tables(kind, rotary, end), self._windows[kind]) for kind, rotary in self._kinds
        ]
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

    def _states_for(self, told: int, read: int, beside: Tensor | None) -> Tensor:
        """What the kernels read beside `read` tokens, [read, hidden], and overwrite with `told` final states."""
        assert self._ends is not None
        hidden = self._dimensions.hidden
        assert self.paired == (beside is not None)
        if beside is None:
            return torch.empty(told, hidden)
        if beside.shape != (read, hidden):
            raise ValueError(f"beside {read} tokens of width {hidden} stand states {tuple(beside.shape)}")
        return beside.to(torch.float32, copy=True)

    def _extend(self, cache: RollbackCache, tokens: int) -> None:
        """Makes room for more tokens."""
        end, last = cache.length + tokens, cache.layers[-1]
        # An exit that shares the first layers may have more room in these than the target has in the others.
        if last.is_initialized and end <= last.capacity:
            for cached in cache.layers:
                cached.length = end
        else:
            like = torch.empty(1, self._kv_heads, 0, self._size, dtype=self._dtype)
            for cached in cache.layers:
                cached.extend(tokens, like, like)
        self._point_to(cache)

    def _point_to(self, cache: RollbackCache) -> None:
        keys = [cached.keys for cached in cache.layers]
        if len(keys) == len(self._pointed_to) and all(map(is_, keys, self._pointed_to)):
            return
        for layer, cached in zip(self._layers, cache.layers, strict=True):
            layer.cached_keys, layer.cached_values = cached.keys.data_ptr(), cached.values.data_ptr()
            layer.capacity = cached.capacity
        self._pointed_to = keys

    def _layer(self, block: Block) -> Layer:
        matrices = iter(block.matrices)  # in the order of the fields that are linear layers
        parts: dict[str, Any] = {}
        for name, kind, *_ in Layer._fields_:
            if kind is Biased:
                matrix = next(matrices)
                parts[name] = Biased(self._weights(matrix).matrix(), self._hold(_bias(matrix)))
            elif name.endswith("_norm"):
                parts[name] = self._hold(getattr(block, name))
        return Layer(
            **parts,
            joint_norms=block.query_norm is not None and len(block.query_norm) > self._size,
            scale=block.scale,
            score_cap=block.score_cap or 0.0,
            residual_scale=block.residual_scale,
            kind=self._kinds.index((block.kind, block.rotary)),
        )

    def _ends_of(self, model: PreTrainedModel) -> Ends | None:
        """What stands around the layers; None where `decoder.cpp` does not know it."""
        embedding, head = self._shape.embedding(model), self._shape.head(model)
        token_ids: Tensor | None = None
        if isinstance(head, TrimmedHead):
            token_ids, self._spread = head.token_ids, head.spread
        weight = embedding.weight
        assert isinstance(weight, Tensor)
        in_blocks = isinstance(embedding, BlockEmbedding)
        spoilt = token_ids is not None and self._logit_cap is not None
        if spoilt or not (in_blocks or weight.dtype in (torch.float32, torch.bfloat16)):
            return None
        parts = _parts_of(head)
        typed = [self._weights(_whole(part)).typed() for part in parts]
        rows: dict[str, Any] = {"embedded": KINDS[weight.dtype], "rows": len(weight)}
        if in_blocks:
            tied = parts[-1].weight is weight
            packed = self._weights(_whole(parts[-1]) if tied else Linear(embedding, 0, len(weight))).matrix()
            rows |= {"embedding": packed.stored, "block_type": packed.type}
        else:
            rows["embedding"] = self._hold(weight.detach())
        scale: Tensor | None = getattr(embedding, "embed_scale", None)
        read = torch.float32 if in_blocks else weight.dtype
        return Ends(
            **rows,
            scale=1.0 if scale is None else float(scale.to(read)),
            norm=self._hold(self._norm),
            thin=typed[0] if len(typed) > 1 else Typed(),
            head=typed[-1],
            logit_divisor=self._logit_divisor,
            logit_cap=self._logit_cap or 0.0,
            token_ids=self._hold(token_ids),
        )

    def _weights(self, linear: Linear) -> Weights:
        """A linear layer's matrix, packed once."""
        if linear not in self._packed:
            module, rows = linear.module, slice(linear.begin, linear.end)
            if isinstance(module, DynamicInt8Linear):
                weight = cast("Any", module).weight()
                packed = Weights(weight.int_repr()[rows], weight.q_per_channel_scales()[rows], self._pages)
            elif isinstance(module, BlockLinear | BlockEmbedding):
                packed = Weights(module.weight[rows], None, self._pages, module.kind)
            else:
                assert isinstance(module, nn.Linear)
                packed = Weights(module.weight[rows], None, self._pages)
            self._packed[linear] = packed
        return self._packed[linear]

    def _hold(self, tensor: Tensor | None) -> int | None:
        """Where it lies as long as this decoder lives."""
        if tensor is None:
            return None
        self._held.append(tensor.contiguous())
        return self._held[-1].data_ptr()


def _stored_as(module: nn.Module) -> torch.dtype | None:
    """The type of a linear layer's weight; None where the kernels cannot multiply by it."""
    if isinstance(module, DynamicInt8Linear):
        weight = cast("Any", module).weight()
        even = weight.qscheme() == torch.per_channel_affine and not weight.q_per_channel_zero_points().any()
        return torch.int8 if even else None
    if isinstance(module, BlockLinear):
        return torch.uint8 if _block_type_is_known(module) else None
    if type(module) is not nn.Linear:
        return None
    plain = module.weight.device.type in ("cpu", "meta") and module.weight.is_contiguous()
    return module.weight.dtype if plain and module.weight.dtype in KINDS else None


def _bias(linear: Linear) -> Tensor | None:
    """Of a linear layer that the kernels can multiply by, fp32 [outputs]."""
    told: Any = linear.module.bias
    found: Tensor | None = told() if callable(told) else told  # of torch's int8 layers it is a method
    return None if found is None else found.detach()[linear.begin : linear.end].float()


def _multiplies(module: nn.Module) -> bool:
    """Whether a linear layer is a matrix that the kernels can multiply by, and nothing else."""
    return _stored_as(module) is not None and _bias(_whole(module)) is None


def _whole(module: nn.Module) -> Linear:
    return Linear(module, 0, cast("int", module.out_features))


def _parts_of(head: nn.Module) -> list[nn.Module]:
    """The linear layers of a head in the order in which they multiply."""
    kept = head.projection if isinstance(head, TrimmedHead) else head
    return [kept.first, kept.second] if isinstance(kept, LowRankLinear) else [kept]


def _parents(count: int, tree: TokenTree | None) -> tuple[ctypes.Array[ctypes.c_int64] | None, int]:
    """Parent indices of a tree, and how many there are; a chain has none."""
    if tree is None:
        return None, count
    return (ctypes.c_int64 * len(tree.parents))(*tree.parents), len(tree.parents)


def _block_type_is_known(module: nn.Module) -> bool:
    """Whether the kernels know the type of blocks that a matrix is in, if it is in blocks."""
    return not isinstance(module, BlockLinear | BlockEmbedding) or module.kind.name in BLOCK_TYPES
