"""The kernels of a decoder's forward in the order in which they run, over buffers that never move."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from draftrank.engine.backends.blocks import (
    LONGROPE,
    Block,
    DecoderShape,
    Linear,
    blocks_of,
    caps_logits,
    is_gelu,
    rotations,
)
from draftrank.engine.backends.cuda_graphs import state
from draftrank.engine.backends.cuda_graphs.state import MAX_ROWS
from draftrank.models.architecture import Architecture
from draftrank.models.attention_windows import attention_windows, head_size
from draftrank.models.eagle import Eagle3Fusion, eagle3_layer
from draftrank.models.forms import FEATURES, TrimmedHead

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedModel

TILE = 16
"""Tokens that one program multiplies."""
SPARE = 2 * MAX_ROWS
"""Slots behind the last one that a sequence may use, written by rows that do not count and by recordings."""
_DTYPES = (torch.bfloat16, torch.float32)
_HEAD_SIZES = (32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Split:
    """How one kernel's work is divided."""

    columns: int
    """Outputs of one program; of heads with norms of their own always all."""
    block: int
    """Inputs, or slots, looked at together."""
    warps: int
    stages: int


class Splits:
    """See `Split`; chosen on an H200 for matrices of 576 to 1,536 columns."""

    heads = Split(16, 64, 2, 5)
    attention = Split(0, 32, 2, 2)
    attention_output = Split(16, 64, 1, 8)
    feed_forward_inputs = Split(32, 64, 4, 6)
    feed_forward_output = Split(16, 256, 1, 4)
    head = Split(128, 64, 4, 4)
    fusion = Split(16, 128, 4, 3)


@dataclass(frozen=True, slots=True)
class _Layer:
    """Norms and biases are fp32. A norm that a layer does not have is all ones, and not applied."""

    attention_norm: Tensor
    attention_normed: bool
    queries_keys_values: Tensor
    queries_keys_values_bias: Tensor | None
    head_norms: Tensor | None
    """[2, size]: of queries and of keys."""
    joint_norms: tuple[Tensor, Tensor] | None
    """[heads · size] each, of all heads of a token together."""
    attention_output: Tensor
    attention_output_bias: Tensor | None
    attention_output_norm: Tensor | None
    """Times the scale of residuals, as the other one."""
    feed_forward_norm: Tensor
    feed_forward_normed: bool
    feed_forward_inputs: Tensor
    """[2 · channels, hidden]: gate, then up."""
    feed_forward_inputs_bias: Tensor | None
    feed_forward_output: Tensor
    feed_forward_output_bias: Tensor | None
    feed_forward_output_norm: Tensor | None
    block: Block
    """The rest."""


@dataclass(slots=True)
class SharedCache:
    """A KV cache that several views of a model share."""

    keys: Tensor
    """[layers, heads, capacity + SPARE, size]"""
    values: Tensor
    capacity: int = 0
    """Most tokens it can hold."""
    length: int = 0
    """Tokens in it."""


class CudaGraphsDecoder(DecoderShape):
    """A decoder of plain matrices in bf16 or fp32, from token ids to the tokens most likely to follow."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Joins the model's matrices in memory; `fits` says which models can be given."""
        from draftrank.engine.backends.cuda_graphs import kernels, step_kernels

        super().__init__(model)
        self._kernels: Any = kernels
        self._step_kernels: Any = step_kernels
        config = model.config.get_text_config()
        self.hidden_size = int(config.hidden_size)
        self.vocabulary_size = int(config.vocab_size)
        self._channels = int(config.intermediate_size)
        self._gelu = is_gelu(model)
        known: dict[tuple[int, ...], Tensor] = {}
        self.layers = [self._layer(block, known) for block in blocks_of(model)]
        head = self._shape.head(model)
        self.token_ids: Tensor | None = head.token_ids if isinstance(head, TrimmedHead) else None
        self._head = _matrix(head.projection if isinstance(head, TrimmedHead) else head)
        self._table = _matrix(self._shape.embedding(model))
        self.device, self.dtype = self._table.device, self._table.dtype
        grown = self.hidden_size**0.5 if self._shape.embedding_grows_with_width else 1.0
        self._grown = float(torch.tensor(grown, dtype=self.dtype))
        fusion = getattr(model, FEATURES, None)
        self.fusion: Eagle3Fusion | None = fusion
        self._head_layer = eagle3_layer(model)
        self._pieces = -(-len(self._head) // Splits.head.columns)
        narrowest = min(Splits.attention_output.columns, Splits.feed_forward_output.columns)
        self._parts = _power(-(-self.hidden_size // narrowest))
        self._make_buffers()

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        """Whether the kernels know this model's forward; see `DecoderShape.fits`."""
        if not DecoderShape.fits(model):
            return False
        shape, config = Architecture.of(model), model.config.get_text_config()
        head, fusion = shape.head(model), getattr(model, FEATURES, None)
        layers = [matrix.module for block in blocks_of(model) for matrix in block.matrices]
        matrices = [head.projection if isinstance(head, TrimmedHead) else head]
        if isinstance(fusion, Eagle3Fusion):
            matrices.append(fusion.fc)
        embedding = shape.embedding(model).weight
        assert isinstance(embedding, Tensor)
        return (
            embedding.dtype in _DTYPES
            and all(_is_plain(matrix, embedding.dtype) for matrix in (*layers, *matrices))
            and all(getattr(matrix, "bias", None) is None for matrix in matrices)
            and head_size(config) in _HEAD_SIZES
            and all(window is None or window >= MAX_ROWS for window in attention_windows(config).values())
            # capping gives the tokens that a trimmed head leaves out a logit, too
            and not (caps_logits(model) and isinstance(head, TrimmedHead))
            and all(one["rope_type"] != LONGROPE for one in rotations(config))
        )

    def first(self, count: int) -> CudaGraphsDecoder:
        """The first `count` layers alone, with buffers of their own; all weights are shared."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.layers = self.layers[:count]
        twin._make_buffers()
        return twin

    def new_cache(self) -> SharedCache:
        """An empty cache without room."""
        empty = torch.zeros(
            len(self.layers), self._kv_heads, SPARE, self._size, dtype=self.dtype, device=self.device
        )
        return SharedCache(empty, empty.clone())

    def grow(self, cache: SharedCache, capacity: int) -> None:
        """Makes room for `capacity` tokens; what is cached stays."""
        for name in ("keys", "values"):
            old = getattr(cache, name)
            new = old.new_zeros(*old.shape[:2], capacity + SPARE, old.shape[-1])
            new[:, :, : cache.length] = old[:, :, : cache.length]
            setattr(cache, name, new)
        cache.capacity = capacity

    def forward(self, cache: SharedCache, rows: int, kept: Mapping[int, int], states: Tensor) -> None:
        """Starts all kernels of a forward over the first `rows` rows of `meta`.

        Args:
            cache: where keys and values are.
            rows: how many rows count, at most `MAX_ROWS`.
            kept: by the numbers of layers, at which part of `states` their outputs are kept.
            states: [MAX_ROWS, parts, hidden]; the last part is that of the states after the final norm. No part: nothing
                is kept.
        """
        launch, splits = self._kernels, Splits
        tiles = -(-rows // TILE)
        width, group, half = self.hidden_size, self._queries // self._kv_heads, self._size // 2
        capacity = cache.keys.shape[2]
        blocks = -(-capacity // splits.attention.block)
        self._make_room_for(_power(blocks))
        self._read_inputs(rows)
        given = 1
        followers = [*(layer.attention_norm for layer in self.layers[1:]), self._norm]
        for number, (layer, following) in enumerate(zip(self.layers, followers, strict=True)):
            block = layer.block
            cosines, sines = self._half_rotations(block.kind, block.rotary, capacity)
            window = self._windows[block.kind]
            split = splits.heads
            columns = half if layer.head_norms is not None else min(split.columns, half)
            paired = block.embedding_norm is not None
            launch.queries_keys_values[((self._queries + 2 * self._kv_heads) * (half // columns), tiles)](
                self.meta, self._pairs if paired else self._scaled, self._squares, layer.queries_keys_values,
                *self._optional(layer.queries_keys_values_bias, layer.head_norms), cosines, sines,
                self._asked, cache.keys[number], cache.values[number], capacity, self._eps,
                WIDTH=2 * width if paired else width, QUERIES=self._queries, KV_HEADS=self._kv_heads, HALF=half, COLUMNS=columns,
                BLOCK=split.block, NORMED=layer.attention_normed and not paired, BIASED=layer.queries_keys_values_bias is not None,
                HEAD_NORMS=layer.head_norms is not None, ROTATES=layer.joint_norms is None, GIVEN=given, PARTS=self._parts,
                ROWS=rows, TILE=TILE, num_warps=max(split.warps, columns // TILE), num_stages=split.stages,
            )  # fmt: skip
            for norm, cached in zip(layer.joint_norms or (), (False, True), strict=False):
                heads = self._kv_heads if cached else self._queries
                launch.norm_jointly[(rows,)](
                    self.meta, cache.keys[number] if cached else self._asked, norm, cosines, sines,
                    (capacity if cached else 1) * self._size, self._eps, HEADS=heads, HALF=half,
                    STRIDE=(1 if cached else heads) * self._size, CACHED=cached, BLOCK=_power(heads), num_warps=4,
                )  # fmt: skip
            split = splits.attention
            launch.attend[(self._kv_heads, -(-rows * group // TILE), blocks)](
                self.meta, self._asked, cache.keys[number], cache.values[number], self._best_scores, self._totals,
                self._sums, capacity, block.scale / math.log(2), (block.score_cap or 0.0) / math.log(2), window or 0,
                QUERIES=self._queries, KV_HEADS=self._kv_heads, SIZE=self._size, ROWS=rows, BLOCK=split.block,
                BLOCKS=_power(blocks), WINDOWED=window is not None, CAPPED=block.score_cap is not None, TILE=TILE, num_warps=split.warps,
                num_stages=split.stages,
            )  # fmt: skip
            launch.merge[(rows * self._queries,)](
                self.meta, self._best_scores, self._totals, self._sums, self._attended,
                SIZE=self._size, BLOCK=split.block, BLOCKS=_power(blocks), num_warps=4,
            )  # fmt: skip
            given = self._add(
                self._attended, layer.attention_output, layer.attention_output_bias, layer.attention_output_norm,
                block.residual_scale, layer.feed_forward_norm, splits.attention_output, rows,
            )  # fmt: skip
            split = splits.feed_forward_inputs
            launch.feed_forward_inputs[(-(-self._channels // split.columns), tiles)](
                self._scaled, self._squares, layer.feed_forward_inputs,
                *self._optional(layer.feed_forward_inputs_bias), self._between, self._eps,
                WIDTH=width, CHANNELS=self._channels, COLUMNS=split.columns, BLOCK=split.block,
                NORMED=layer.feed_forward_normed, BIASED=layer.feed_forward_inputs_bias is not None, GELU=self._gelu,
                GIVEN=given, PARTS=self._parts, ROWS=rows, TILE=TILE,
                num_warps=split.warps, num_stages=split.stages,
            )  # fmt: skip
            # what an EAGLE-3 head reads of itself is its layer's output, in the place of the final state
            part = -1 if paired and states.shape[1] else kept.get(number)
            given = self._add(
                self._between, layer.feed_forward_output, layer.feed_forward_output_bias,
                layer.feed_forward_output_norm, block.residual_scale, following, splits.feed_forward_output, rows, None if part is None else states[:, part],
            )  # fmt: skip
        if states.shape[1] and self._head_layer is None:
            launch.tell[(rows,)](
                self._hidden, self._squares, self._norm, states[:, -1], states.stride(0), self._eps,
                WIDTH=width, GIVEN=given, PARTS=self._parts, ROWS=rows, BLOCK=_power(width), num_warps=4,
            )  # fmt: skip
        split = splits.head
        launch.head[(self._pieces, tiles)](
            self._scaled, self._squares, self._head, self.logits, self._best_values, self._best_places, self._eps,
            self._logit_divisor, self._logit_cap or 0.0,
            WIDTH=width, VOCABULARY=len(self._head), COLUMNS=split.columns, BLOCK=split.block, PIECES=self._pieces,
            DIVIDED=self._logit_divisor != 1, CAPPED=self._logit_cap is not None, GIVEN=given, PARTS=self._parts, ROWS=rows, TILE=TILE,
            num_warps=split.warps, num_stages=split.stages,
        )  # fmt: skip
        trimmed = self.token_ids is not None
        launch.choose[(rows,)](
            self._best_values, self._best_places, self.token_ids if trimmed else self.choices, self.choices,
            PIECES=self._pieces, BLOCK=_power(self._pieces), TRIMMED=trimmed, num_warps=4,
        )  # fmt: skip

    def go_on(self, states: Tensor) -> None:
        """Starts the kernel that makes what was chosen last the next token, and notes it."""
        features = self.fusion is not None
        self._step_kernels.go_on[(1,)](
            self.meta, self.choices, self.proposed, states[:, -1] if features else states,
            states.stride(0), self.offered, WIDTH=self.hidden_size, BLOCK=_power(self.hidden_size),
            FEATURES=features, num_warps=1,
        )  # fmt: skip

    def judge(self, draft: CudaGraphsDecoder, count: int, report: Tensor) -> None:
        """Starts the kernel that judges what was proposed, and tells this model and its draft where to go on.

        Args:
            draft: whose `meta` is told.
            count: how many tokens may be proposed.
            report: int64 [2 · count + 3], written: how many were accepted, how many there were, the choices, what was
                proposed.
        """
        self._step_kernels.judge[(1,)](
            self.meta, self.choices, draft.meta, report, COUNT=count, BLOCK=_power(count + 1), num_warps=1
        )

    def deliver(self, draft: CudaGraphsDecoder, count: int) -> None:
        """Starts the kernel that lets this model read what a draft has proposed."""
        self._step_kernels.deliver[(1,)](
            self.meta, draft.proposed, COUNT=count, BLOCK=_power(count), num_warps=1
        )

    def note(self) -> None:
        """Starts the kernel that notes what was chosen last."""
        self._step_kernels.note[(1,)](self.meta, self.choices, self.proposed, num_warps=1)

    def reduce(self, states: Tensor, rows: int, reduced: Tensor) -> None:
        """Starts the kernel that makes one state of each of a target's: of `rows` rows of [at least rows, state_width] in
        the model's type, a multiple of `TILE`; `reduced` [at least rows, hidden] is written."""
        assert self.fusion is not None
        split, matrix = Splits.fusion, self.fusion.fc
        self._step_kernels.reduce[(-(-self.hidden_size // split.columns), rows // TILE)](
            states, matrix.weight, reduced, WIDTH=self.hidden_size, READ=matrix.in_features, TOLD=self.fusion.state_width,
            COLUMNS=split.columns, BLOCK=split.block, TILE=TILE, num_warps=split.warps, num_stages=split.stages,
        )  # fmt: skip

    def _read_inputs(self, rows: int) -> None:
        """Starts what makes the first layer's input; the sums of its squares are given in one part."""
        first, common = (
            self.layers[0],
            {"WIDTH": self.hidden_size, "BLOCK": _power(self.hidden_size), "num_warps": 4},
        )
        if self._head_layer is None:
            self._kernels.embed[(rows,)](
                self.meta, self._table, self._hidden, self._scaled, self._squares, first.attention_norm, self._grown,
                self._input_scale, PARTS=self._parts, ROWS=rows, **common,
            )  # fmt: skip
        else:
            self._step_kernels.pair[(rows,)](
                self.meta, self._table, self.offered, first.block.embedding_norm, first.block.attention_norm, self._hidden,
                self._pairs, self._eps, NORM_BEFORE_RESIDUAL=self._head_layer.norm_before_residual, **common,
            )  # fmt: skip

    def _add(
        self,
        read: Tensor,
        matrix: Tensor,
        bias: Tensor | None,
        norm: Tensor | None,
        scale: float,
        following: Tensor,
        split: Split,
        rows: int,
        copy: Tensor | None = None,
    ) -> int:
        """Starts what adds a product of `read`, [MAX_ROWS, width], and `matrix`, [hidden, width], with a bias; returns in
        how many parts the sums of the result's squares are given.

        A norm of the product scales it as well; without one it is multiplied with `scale`. `following` is the norm of
        whoever reads the sum; it is kept in `copy` as well."""
        width, pieces = self.hidden_size, -(-self.hidden_size // split.columns)
        written = self._hidden, self._scaled, self._squares, following
        kept = (self._hidden, 0) if copy is None else (copy, copy.stride(0))
        self._kernels.project[(pieces, -(-rows // TILE))](
            read, matrix, *self._optional(bias), scale, *written, self._projected, *kept, WIDTH=read.shape[-1],
            OUTPUTS=width, COLUMNS=split.columns, BLOCK=split.block, BIASED=bias is not None, ADDS=norm is None,
            SCALED=scale != 1, COPIES=copy is not None, PARTS=self._parts, ROWS=rows, TILE=TILE,
            num_warps=split.warps, num_stages=split.stages,
        )  # fmt: skip
        if norm is None:
            return pieces
        self._kernels.add_normed[(rows,)](
            self._projected, norm, *written, *kept, self._eps, WIDTH=width, PARTS=self._parts, ROWS=rows,
            BLOCK=_power(width), COPIES=copy is not None, num_warps=4,
        )  # fmt: skip
        return 1

    def _optional(self, *tensors: Tensor | None) -> list[Tensor]:
        """What kernels are given; where there is nothing, something that they do not read."""
        return [self._norm if tensor is None else tensor for tensor in tensors]

    def _half_rotations(self, kind: str, rotary: bool, slots: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of at least the first `slots` positions, fp32 [positions, size / 2]."""
        tables = self._half_tables.get((kind, rotary))
        if tables is None or len(tables[0]) < slots:
            cosines, signed = (table[:, 0] for table in self._rotation_tables(kind, rotary, slots))
            half = cosines.shape[-1] // 2
            rest = (0, self._size // 2 - half)  # rotated by no angle
            tables = (
                pad(cosines[:, :half], rest, value=1.0).contiguous(),
                pad(signed[:, half:], rest).contiguous(),
            )
            self._half_tables[kind, rotary] = tables
        return tables

    def _make_buffers(self) -> None:
        """Everything that is written, made once: a recording remembers where it lies."""
        rows = MAX_ROWS
        like: dict[str, Any] = {"device": self.device}
        self.meta = torch.zeros(state.SIZE, dtype=torch.int64, **like)
        self.choices = torch.zeros(rows, dtype=torch.int64, **like)
        self.proposed = torch.zeros(rows, dtype=torch.int64, **like)
        self.offered = torch.zeros(rows, self.hidden_size, dtype=self.dtype, **like)
        self.logits = torch.zeros(rows, len(self._head), **like)
        self._hidden = torch.zeros(rows, self.hidden_size, **like)
        self._scaled = torch.zeros(rows, self.hidden_size, dtype=self.dtype, **like)
        paired = 0 if self._head_layer is None else 2 * self.hidden_size
        self._pairs = torch.zeros(rows, paired, dtype=self.dtype, **like)
        self._squares = torch.zeros(rows, self._parts, **like)
        self._projected = torch.zeros(rows, self.hidden_size, **like)
        self._asked = torch.zeros(rows, self._queries * self._size, dtype=self.dtype, **like)
        self._attended = torch.zeros_like(self._asked)
        self._between = torch.zeros(rows, self._channels, dtype=self.dtype, **like)
        self._make_room_for(0)
        self._best_values = torch.zeros(rows, self._pieces, **like)
        self._best_places = torch.zeros(rows, self._pieces, dtype=torch.int32, **like)
        self._half_tables: dict[tuple[str, bool], tuple[Tensor, Tensor]] = {}

    def _make_room_for(self, parts: int) -> None:
        """For what queries find in so many blocks of slots."""
        if parts and len(self._sums) >= MAX_ROWS * self._queries * parts:
            return
        found = MAX_ROWS * self._queries * parts
        self._best_scores: Tensor = torch.zeros(found, device=self.device)
        self._totals: Tensor = torch.zeros(found, device=self.device)
        self._sums: Tensor = torch.zeros(found, self._size, device=self.device)

    def _layer(self, block: Block, known: dict[tuple[int, ...], Tensor]) -> _Layer:
        heads = [block.queries, block.keys, block.values]
        joined, bias = _joined(heads, known), _joined_biases(heads)
        norms = [block.query_norm, block.key_norm]
        order = self._order_of_heads(block)
        if order is not None:
            joined = joined[order]
            bias = None if bias is None else bias[order]
            within = order[: self._size]
            norms = [
                None if norm is None else norm.view(-1, self._size)[:, within].flatten() for norm in norms
            ]
        of_heads = [norm for norm in norms if norm is not None]
        joint = bool(of_heads) and len(of_heads[0]) > self._size
        none = torch.ones_like(self._norm)
        after = [
            None if norm is None else norm * block.residual_scale
            for norm in (block.attention_output_norm, block.feed_forward_output_norm)
        ]
        return _Layer(
            attention_norm=none if block.attention_norm is None else block.attention_norm,
            attention_normed=block.attention_norm is not None,
            queries_keys_values=joined,
            queries_keys_values_bias=bias,
            head_norms=torch.stack(of_heads) if of_heads and not joint else None,
            joint_norms=(of_heads[0], of_heads[1]) if joint else None,
            attention_output=_matrix(block.attention_output.module),
            attention_output_bias=_joined_biases([block.attention_output]),
            attention_output_norm=after[0],
            feed_forward_norm=none if block.feed_forward_norm is None else block.feed_forward_norm,
            feed_forward_normed=block.feed_forward_norm is not None,
            feed_forward_inputs=_joined([block.gate, block.up], known),
            feed_forward_inputs_bias=_joined_biases([block.gate, block.up]),
            feed_forward_output=_matrix(block.down.module),
            feed_forward_output_bias=_joined_biases([block.down]),
            feed_forward_output_norm=after[1],
            block=block,
        )

    def _order_of_heads(self, block: Block) -> Tensor | None:
        """Where in the joined matrix its rows come from, if only some dimensions of a head are rotated: the two halves of these
        go to the beginnings of the head's halves, where the kernels rotate. Scores do not depend on an order that queries and
        keys share."""
        rotated = self._rotation_tables(block.kind, block.rotary, 1)[0].shape[-1]
        if rotated == self._size:
            return None
        half, rest = rotated // 2, (self._size - rotated) // 2
        ranges = [(0, half), (rotated, rotated + rest), (half, rotated), (rotated + rest, self._size)]
        within = torch.cat([torch.arange(*ends) for ends in ranges])
        of_heads = torch.arange(self._queries + self._kv_heads)[:, None] * self._size + within
        values = torch.arange(self._kv_heads * self._size) + of_heads.numel()
        return torch.cat([of_heads.flatten(), values]).to(self._norm.device)


def _joined(linears: Sequence[Linear], known: dict[tuple[int, ...], Tensor]) -> Tensor:
    """Several matrices of the same input as one; the modules are given their parts of it, so they lie in memory once."""
    modules: list[Any] = list(dict.fromkeys(linear.module for linear in linears))
    if len(modules) == 1:
        return _matrix(modules[0])
    key = tuple(module.weight.data_ptr() for module in modules)  # layers may share their weights
    if key not in known:
        with torch.no_grad():
            joined = torch.cat([module.weight for module in modules])
        parts = torch.split(joined, [module.out_features for module in modules])
        for module, part in zip(modules, parts, strict=True):
            module.weight.data = part
        known[key] = known[tuple(part.data_ptr() for part in parts)] = joined
    return known[key]


def _joined_biases(linears: Sequence[Linear]) -> Tensor | None:
    """Of several linear layers, fp32; zeros where only some have one, None where none has."""
    biases: list[Any] = [linear.module.bias for linear in linears]
    if all(bias is None for bias in biases):
        return None
    device = next(bias for bias in biases if bias is not None).device
    return torch.cat(
        [
            torch.zeros(linear.shape[0], device=device)
            if bias is None
            else bias.detach()[linear.begin : linear.end].float()
            for linear, bias in zip(linears, biases, strict=True)
        ]
    )


def _is_plain(module: nn.Module, dtype: torch.dtype) -> bool:
    """Whether this is a linear layer with a matrix of that type."""
    return type(module) is nn.Linear and module.weight.dtype == dtype


def _matrix(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach().contiguous()


def _power(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()
