"""A decoder's forward over a few tokens in six Triton kernels a layer, eight where queries and keys of all heads are normed
together. What a family does not have is left out of its kernels when they are compiled.

What bounds a small model on a GPU is starting kernels and waiting for memory, not arithmetic: so whatever needs no other
processor's result happens where its input was made. A norm's scale is one number per row and commutes with the matrix
behind it: whoever makes a layer's input writes it times the norm's weight, and the sums of squares of its own columns
beside it, and whoever reads it multiplies first and scales afterwards.

All are started over tiles of 16 tokens, the fewest that the matrix units multiply; a row of a tile does not depend on the
others, and keys are looked at in blocks of fixed positions. So a chain of tokens gives the same bits however it is divided
into forwards.

Where the sequence stands is told by `meta` (see `state`). Activations between layers are fp32; matrices, queries, keys and values have the model's type.
"""

from __future__ import annotations

import triton
import triton.language as tl

from draftrank.engine.backends.cuda_graphs.state import (
    ANCESTORS,
    END,
    IDS,
    MAX_ROWS,
    POSITIONS,
    ROOT,
    START,
)

_START = tl.constexpr(START)
_ROOT = tl.constexpr(ROOT)
_END = tl.constexpr(END)
_IDS = tl.constexpr(IDS)
_POSITIONS = tl.constexpr(POSITIONS)
_ANCESTORS = tl.constexpr(ANCESTORS)
_LAST_PLACE = tl.constexpr(MAX_ROWS - 1)
_FAR = tl.constexpr(2**31 - 1)


@triton.jit
def _give(
    hidden,
    scaled,
    squares,
    norm,
    made,
    rows,
    columns,
    part,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Writes some columns of what the next layer reads: as they are, times the norm's weight, and the sum of their squares."""
    inside = (rows[:, None] < ROWS) & (columns[None] < WIDTH)
    places = rows[:, None] * WIDTH + columns[None]
    tl.store(hidden + places, made, mask=inside)
    weight = tl.load(norm + columns, mask=columns < WIDTH, other=0.0)
    tl.store(scaled + places, made * weight[None], mask=inside)
    tl.store(squares + rows * PARTS + part, tl.sum(tl.where(inside, made * made, 0.0), 1), mask=rows < ROWS)


@triton.jit
def _scale(
    squares, rows, eps, GIVEN: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    """One over the root of the mean square of each row, of which `GIVEN` parts were given; [rows, 1]."""
    parts = tl.arange(0, PARTS)
    inside = (rows[:, None] < ROWS) & (parts[None] < GIVEN)
    found = tl.load(squares + rows[:, None] * PARTS + parts[None], mask=inside, other=0.0)
    return tl.rsqrt(tl.sum(found, 1) / WIDTH + eps)[:, None]


@triton.jit
def _part(read, rows, columns, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Some columns of the rows that count."""
    inside = (rows[:, None] < ROWS) & (columns[None] < WIDTH)
    return tl.load(read + rows[:, None] * WIDTH + columns[None], mask=inside, other=0.0)


@triton.jit
def _times(part, matrix, outputs, columns, made, WIDTH: tl.constexpr, LAST: tl.constexpr):
    """made += part · matrix[outputs, columns]ᵀ."""
    inside = (columns[:, None] < WIDTH) & (outputs[None] < LAST)
    weight = tl.load(matrix + outputs[None] * WIDTH + columns[:, None], mask=inside, other=0.0)
    return tl.dot(part, weight, made, input_precision="ieee")


@triton.jit
def _capped(x, cap):
    """cap · tanh(x / cap)"""
    rest = tl.exp(-2.0 * tl.abs(x) / cap)  # never large
    most = cap * (1.0 - rest) / (1.0 + rest)
    return tl.where(x < 0, -most, most)


@triton.jit
def embed(
    meta,
    table,
    hidden,
    scaled,
    squares,
    norm,
    grown,
    input_scale,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The embeddings of one token, times `grown` and rounded as the model rounds them, times `input_scale`."""
    row = tl.program_id(0) + tl.arange(0, 1)
    token = tl.load(meta + _IDS + tl.program_id(0))
    columns = tl.arange(0, BLOCK)
    read = tl.load(table + token * WIDTH + columns, mask=columns < WIDTH, other=0.0).to(tl.float32) * grown
    read = read.to(table.dtype.element_ty).to(tl.float32) * input_scale
    _give(hidden, scaled, squares, norm, read[None], row, columns, 0, PARTS, ROWS, WIDTH)


@triton.jit
def queries_keys_values(
    meta,
    scaled,
    squares,
    matrix,
    bias,
    head_norms,
    cosines,
    sines,
    queries,
    keys,
    values,
    capacity,
    eps,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    NORMED: tl.constexpr,
    BIASED: tl.constexpr,
    HEAD_NORMS: tl.constexpr,
    ROTATES: tl.constexpr,
    GIVEN: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Queries, keys or values of a tile of tokens, normed and rotated (without ROTATES left to `norm_jointly`); keys and values
    go into the cache.

    A program makes `COLUMNS` of the first half of one head and those of the second half that are rotated with them.
    """
    PIECES: tl.constexpr = HALF // COLUMNS
    program = tl.program_id(0)
    head = program // PIECES
    rows = tl.program_id(1) * TILE + tl.arange(0, TILE)
    lower = program % PIECES * COLUMNS + tl.arange(0, COLUMNS)
    outputs = head * 2 * HALF + lower
    slots = tl.load(meta + _START) + rows
    position = tl.load(meta + _POSITIONS + rows)
    cosine = tl.load(cosines + position[:, None] * HALF + lower[None])
    sine = tl.load(sines + position[:, None] * HALF + lower[None])
    low = tl.zeros((TILE, COLUMNS), tl.float32)
    high = tl.zeros((TILE, COLUMNS), tl.float32)
    for begin in range(0, WIDTH, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        part = _part(scaled, rows, columns, ROWS, WIDTH)
        low = _times(part, matrix, outputs, columns, low, WIDTH, (QUERIES + 2 * KV_HEADS) * 2 * HALF)
        high = _times(part, matrix, outputs + HALF, columns, high, WIDTH, (QUERIES + 2 * KV_HEADS) * 2 * HALF)
    if NORMED:
        scale = _scale(squares, rows, eps, GIVEN, PARTS, ROWS, WIDTH)
        low *= scale
        high *= scale
    if BIASED:
        low += tl.load(bias + outputs)[None]
        high += tl.load(bias + outputs + HALF)[None]
    if head < QUERIES + KV_HEADS:
        if HEAD_NORMS:  # the head is whole
            mean = (tl.sum(low * low, 1) + tl.sum(high * high, 1)) / (2 * HALF)
            even = tl.rsqrt(mean + eps)[:, None]
            weights = head_norms + tl.where(head < QUERIES, 0, 2 * HALF) + lower
            low *= even * tl.load(weights)[None]
            high *= even * tl.load(weights + HALF)[None]
        if ROTATES:
            rotated = low * cosine - high * sine
            high = high * cosine + low * sine
            low = rotated
    if head < QUERIES:
        asked = (rows * QUERIES + head)[:, None] * (2 * HALF) + lower[None]
        tl.store(queries + asked, low)
        tl.store(queries + asked + HALF, high)
    elif head < QUERIES + KV_HEADS:
        places = ((head - QUERIES) * capacity + slots)[:, None] * (2 * HALF) + lower[None]
        tl.store(keys + places, low)
        tl.store(keys + places + HALF, high)
    else:
        places = ((head - QUERIES - KV_HEADS) * capacity + slots)[:, None] * (2 * HALF) + lower[None]
        tl.store(values + places, low)
        tl.store(values + places + HALF, high)


@triton.jit
def norm_jointly(
    meta,
    vectors,
    norm,
    cosines,
    sines,
    head_stride,
    eps,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    STRIDE: tl.constexpr,
    CACHED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token's queries, or with CACHED its keys in the cache, normed over all heads together and rotated, in place.

    `head_stride` and STRIDE say how far apart heads and tokens lie.
    """
    row = tl.program_id(0)
    heads = tl.arange(0, BLOCK)[:, None]
    columns = tl.arange(0, HALF)[None]
    inside = heads < HEADS
    slot = row.to(tl.int64)
    if CACHED:
        slot += tl.load(meta + _START)
    low_places = heads * head_stride + slot * STRIDE + columns
    low = tl.load(vectors + low_places, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(vectors + low_places + HALF, mask=inside, other=0.0).to(tl.float32)
    even = tl.rsqrt(tl.sum(tl.sum(low * low + high * high, 1), 0) / (HEADS * 2 * HALF) + eps)
    weights = norm + heads * (2 * HALF) + columns
    low *= even * tl.load(weights, mask=inside, other=0.0)
    high *= even * tl.load(weights + HALF, mask=inside, other=0.0)
    turn = tl.load(meta + _POSITIONS + row) * HALF + columns
    cosine, sine = tl.load(cosines + turn), tl.load(sines + turn)
    tl.store(vectors + low_places, low * cosine - high * sine, mask=inside)
    tl.store(vectors + low_places + HALF, high * cosine + low * sine, mask=inside)


@triton.jit
def attend(
    meta,
    queries,
    keys,
    values,
    best_scores,
    totals,
    sums,
    capacity,
    scale,
    cap,
    window,
    QUERIES: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Attention of 16 queries that share keys and values to one block of slots, of which `merge` makes the whole
    (Dao et al. 2023, *Flash-Decoding*).

    `scale` and `cap` count in powers of two. A token sees what lies before its tree's root, within the window, and its ancestors.
    """
    GROUP: tl.constexpr = QUERIES // KV_HEADS
    kv_head = tl.program_id(0)
    flat = tl.program_id(1) * TILE + tl.arange(0, TILE)
    block = tl.program_id(2)
    end = tl.load(meta + _END)
    if block * BLOCK < end:
        rows = flat // GROUP
        inside = rows < ROWS
        asking = rows * QUERIES + kv_head * GROUP + flat % GROUP
        columns = tl.arange(0, SIZE)
        asked = tl.load(queries + asking[:, None] * SIZE + columns[None], mask=inside[:, None], other=0.0)
        root = tl.load(meta + _ROOT)
        ancestors = tl.load(meta + _ANCESTORS + rows, mask=inside, other=0)
        position = tl.load(meta + _POSITIONS + rows, mask=inside, other=_FAR)
        slots = block * BLOCK + tl.arange(0, BLOCK)
        cached = slots < end
        lines = kv_head * capacity + slots
        key = tl.load(keys + lines[None] * SIZE + columns[:, None], mask=cached[None], other=0.0)
        value = tl.load(values + lines[:, None] * SIZE + columns[None], mask=cached[:, None], other=0.0)
        scores = tl.dot(asked, key, input_precision="ieee") * scale
        if CAPPED:
            scores = _capped(scores, cap)
        offset = slots - root
        bit = tl.minimum(tl.maximum(offset, 0), _LAST_PLACE)
        sees = (offset[None] < 0) | (((ancestors[:, None] >> bit[None]) & 1) != 0)
        sees = sees & cached[None]
        if WINDOWED:
            sees = sees & (slots[None] > position[:, None] - window)
        scores = tl.where(sees, scores, float("-inf"))
        best = tl.max(scores, 1)
        share = tl.exp2(scores - tl.where(best == float("-inf"), 0.0, best)[:, None])
        found = tl.dot(share.to(value.dtype), value, input_precision="ieee")
        tl.store(best_scores + asking * BLOCKS + block, best, mask=inside)
        tl.store(totals + asking * BLOCKS + block, tl.sum(share, 1), mask=inside)
        places = (asking * BLOCKS + block)[:, None] * SIZE + columns[None]
        tl.store(sums + places, found, mask=inside[:, None])


@triton.jit
def merge(
    meta, best_scores, totals, sums, attended, SIZE: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr
):
    """What one query found in all blocks of slots, [size]."""
    asking = tl.program_id(0)
    blocks = tl.arange(0, BLOCKS)
    columns = tl.arange(0, SIZE)
    seen = blocks * BLOCK < tl.load(meta + _END)
    best = tl.load(best_scores + asking * BLOCKS + blocks, mask=seen, other=float("-inf"))
    total = tl.load(totals + asking * BLOCKS + blocks, mask=seen, other=0.0)
    places = (asking * BLOCKS + blocks)[:, None] * SIZE + columns[None]
    found = tl.load(sums + places, mask=seen[:, None], other=0.0)
    share = tl.exp2(best - tl.max(best, 0))
    found = tl.sum(found * share[:, None], 0) / tl.sum(total * share, 0)
    tl.store(attended + asking * SIZE + columns, found)


@triton.jit
def project(
    read,
    matrix,
    bias,
    added_scale,
    hidden,
    scaled,
    squares,
    norm,
    product,
    copy,
    copy_stride,
    WIDTH: tl.constexpr,
    OUTPUTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    BIASED: tl.constexpr,
    ADDS: tl.constexpr,
    SCALED: tl.constexpr,
    COPIES: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """With ADDS hidden += read · matrixᵀ + bias, with SCALED times `added_scale`, kept in `copy` as well with COPIES; otherwise
    `product` is what would be added."""
    rows = tl.program_id(1) * TILE + tl.arange(0, TILE)
    outputs = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    made = tl.zeros((TILE, COLUMNS), tl.float32)
    if ADDS and not SCALED:
        made = _part(hidden, rows, outputs, ROWS, OUTPUTS)
    for begin in range(0, WIDTH, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        made = _times(_part(read, rows, columns, ROWS, WIDTH), matrix, outputs, columns, made, WIDTH, OUTPUTS)
    if BIASED:
        made += tl.load(bias + outputs, mask=outputs < OUTPUTS, other=0.0)[None]
    if ADDS and SCALED:
        made = _part(hidden, rows, outputs, ROWS, OUTPUTS) + added_scale * made
    inside = (rows[:, None] < ROWS) & (outputs[None] < OUTPUTS)
    if ADDS:
        _give(hidden, scaled, squares, norm, made, rows, outputs, tl.program_id(0), PARTS, ROWS, OUTPUTS)
        if COPIES:
            tl.store(copy + rows[:, None] * copy_stride + outputs[None], made, mask=inside)
    else:
        tl.store(product + rows[:, None] * OUTPUTS + outputs[None], made, mask=inside)


@triton.jit
def add_normed(
    product,
    product_norm,
    hidden,
    scaled,
    squares,
    norm,
    copy,
    copy_stride,
    eps,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    COPIES: tl.constexpr,
):
    """hidden += norm(product), of one token; kept in `copy` as well with COPIES."""
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    read = tl.load(product + row * WIDTH + columns, mask=inside, other=0.0)
    read *= tl.rsqrt(tl.sum(read * read, 0) / WIDTH + eps)
    read *= tl.load(product_norm + columns, mask=inside, other=0.0)
    made = tl.load(hidden + row * WIDTH + columns, mask=inside, other=0.0) + read
    _give(hidden, scaled, squares, norm, made[None], row + tl.arange(0, 1), columns, 0, PARTS, ROWS, WIDTH)
    if COPIES:
        tl.store(copy + row * copy_stride + columns, made, mask=inside)


@triton.jit
def feed_forward_inputs(
    scaled,
    squares,
    matrix,
    bias,
    channels,
    eps,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    NORMED: tl.constexpr,
    BIASED: tl.constexpr,
    GELU: tl.constexpr,
    GIVEN: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """channels = activation(gate · norm(hidden)) · (up · norm(hidden))."""
    rows = tl.program_id(1) * TILE + tl.arange(0, TILE)
    outputs = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    gate = tl.zeros((TILE, COLUMNS), tl.float32)
    up = tl.zeros((TILE, COLUMNS), tl.float32)
    for begin in range(0, WIDTH, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        part = _part(scaled, rows, columns, ROWS, WIDTH)
        gate = _times(part, matrix, outputs, columns, gate, WIDTH, CHANNELS)
        up = _times(part, matrix + CHANNELS * WIDTH, outputs, columns, up, WIDTH, CHANNELS)
    if NORMED:
        scale = _scale(squares, rows, eps, GIVEN, PARTS, ROWS, WIDTH)
        gate *= scale
        up *= scale
    if BIASED:
        gate += tl.load(bias + outputs, mask=outputs < CHANNELS, other=0.0)[None]
        up += tl.load(bias + CHANNELS + outputs, mask=outputs < CHANNELS, other=0.0)[None]
    if GELU:  # tanh(y) = 2 · sigmoid(2y) - 1
        gate *= tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    else:
        gate *= tl.sigmoid(gate)
    inside = (rows[:, None] < ROWS) & (outputs[None] < CHANNELS)
    tl.store(channels + rows[:, None] * CHANNELS + outputs[None], gate * up, mask=inside)


@triton.jit
def head(
    scaled,
    squares,
    matrix,
    logits,
    best_values,
    best_places,
    eps,
    divisor,
    cap,
    WIDTH: tl.constexpr,
    VOCABULARY: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    PIECES: tl.constexpr,
    DIVIDED: tl.constexpr,
    CAPPED: tl.constexpr,
    GIVEN: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Logits of some of the vocabulary, and their best."""
    rows = tl.program_id(1) * TILE + tl.arange(0, TILE)
    outputs = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    scale = _scale(squares, rows, eps, GIVEN, PARTS, ROWS, WIDTH)
    made = tl.zeros((TILE, COLUMNS), tl.float32)
    for begin in range(0, WIDTH, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        made = _times(
            _part(scaled, rows, columns, ROWS, WIDTH), matrix, outputs, columns, made, WIDTH, VOCABULARY
        )
    made *= scale
    if DIVIDED:
        made /= divisor
    if CAPPED:
        made = _capped(made, cap)
    inside = (rows[:, None] < ROWS) & (outputs[None] < VOCABULARY)
    tl.store(logits + rows[:, None] * VOCABULARY + outputs[None], made, mask=inside)
    made = tl.where(outputs[None] < VOCABULARY, made, float("-inf"))
    best = tl.max(made, 1)
    place = tl.min(tl.where(made == best[:, None], outputs[None], _FAR), 1)
    tl.store(best_values + rows * PIECES + tl.program_id(0), best, mask=rows < ROWS)
    tl.store(best_places + rows * PIECES + tl.program_id(0), place, mask=rows < ROWS)


@triton.jit
def tell(
    hidden,
    squares,
    norm,
    states,
    stride,
    eps,
    WIDTH: tl.constexpr,
    GIVEN: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """States of one token after the final norm."""
    row = tl.program_id(0) + tl.arange(0, 1)
    columns = tl.arange(0, BLOCK)
    inside = columns[None] < WIDTH
    read = tl.load(hidden + row[:, None] * WIDTH + columns[None], mask=inside, other=0.0)
    read *= _scale(squares, row, eps, GIVEN, PARTS, ROWS, WIDTH)
    read *= tl.load(norm + columns, mask=columns < WIDTH, other=0.0)[None]
    tl.store(states + row[:, None] * stride + columns[None], read, mask=inside)


@triton.jit
def choose(
    best_values,
    best_places,
    token_ids,
    choices,
    PIECES: tl.constexpr,
    BLOCK: tl.constexpr,
    TRIMMED: tl.constexpr,
):
    """The most likely token of each row; of equally likely ones the first."""
    row = tl.program_id(0)
    parts = tl.arange(0, BLOCK)
    inside = parts < PIECES
    values = tl.load(best_values + row * PIECES + parts, mask=inside, other=float("-inf"))
    places = tl.load(best_places + row * PIECES + parts, mask=inside, other=_FAR)
    best = tl.max(values, 0)
    place = tl.min(tl.where(values == best, places, _FAR), 0)
    if TRIMMED:
        tl.store(choices + row, tl.load(token_ids + place))
    else:
        tl.store(choices + row, place.to(tl.int64))
