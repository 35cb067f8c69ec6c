"""Kernels around a forward: what an EAGLE-3 head reads, a chain's next token, and which proposed tokens are accepted.

See `kernels` for a forward's own, and `state` for `meta`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from draftrank.engine.backends.cuda_graphs.kernels import (
    _ANCESTORS,
    _END,
    _IDS,
    _POSITIONS,
    _ROOT,
    _START,
    _times,
)
from draftrank.engine.backends.cuda_graphs.state import OFFERED, ROW, STEP

_ROW = tl.constexpr(ROW)
_STEP = tl.constexpr(STEP)
_OFFERED = tl.constexpr(OFFERED)


@triton.jit
def go_on(
    meta,
    choices,
    proposed,
    states,
    states_stride,
    offered,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """Puts what was chosen last in place of the next token, and its state in place of the feature read with it."""
    row = tl.load(meta + _ROW)
    token = tl.load(choices + row)
    end = tl.load(meta + _END)
    step = tl.load(meta + _STEP)
    if FEATURES:
        columns = tl.arange(0, BLOCK)
        inside = columns < WIDTH
        state = tl.load(states + row * states_stride + columns, mask=inside)
        tl.store(offered + columns, state, mask=inside)
    tl.store(proposed + step, token)
    tl.store(meta + _START, end)
    tl.store(meta + _ROOT, end)
    tl.store(meta + _END, end + 1)
    tl.store(meta + _ROW, end * 0)
    tl.store(meta + _STEP, step + 1)
    tl.store(meta + _IDS, token)
    tl.store(meta + _POSITIONS, end)
    tl.store(meta + _ANCESTORS, end * 0 + 1)


@triton.jit
def note(meta, choices, proposed):
    """Notes what was chosen last, and goes on with nothing."""
    tl.store(proposed + tl.load(meta + _STEP), tl.load(choices + tl.load(meta + _ROW)))


@triton.jit
def judge(meta, choices, draft_meta, report, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Accepts proposed tokens as long as each is the target's most likely one, and says where both models go on.

    `meta` holds the context's last token and up to COUNT proposed ones, `choices` what the target would say after each.
    Those that agree and the choice behind them are the next tokens. The draft shall read them next, behind the context that it
    holds, and the target the last of them and what the draft will have proposed.

    `report` receives how many were accepted, how many there were, the choices, and what was proposed.
    """
    places = tl.arange(0, BLOCK)
    chosen = tl.load(choices + places, mask=places <= COUNT, other=0)
    proposed = tl.load(meta + _IDS + 1 + places, mask=places < COUNT, other=-1)
    start = tl.load(meta + _START)
    offered = tl.load(meta + _OFFERED).to(tl.int32)
    wrong = (chosen != proposed) & (places < offered)
    accepted = tl.min(tl.where(wrong, places, offered), 0)
    last = tl.sum(tl.where(places == accepted, chosen, 0), 0)
    following = start + accepted + 1
    tl.store(report, accepted.to(tl.int64))
    tl.store(report + 1, offered.to(tl.int64))
    tl.store(report + 2 + places, chosen, mask=places <= COUNT)
    tl.store(report + 3 + COUNT + places, proposed, mask=places < COUNT)
    tl.store(draft_meta + _START, start + 1)
    tl.store(draft_meta + _ROOT, start + 1)
    tl.store(draft_meta + _END, following + 1)
    tl.store(draft_meta + _ROW, accepted.to(tl.int64))
    tl.store(draft_meta + _STEP, start * 0)
    tl.store(draft_meta + _IDS + places, chosen, mask=places <= COUNT)
    tl.store(draft_meta + _POSITIONS + places, start + 1 + places, mask=places <= COUNT)
    tl.store(meta + _START, following)
    tl.store(meta + _ROOT, following)
    tl.store(meta + _END, following + COUNT + 1)
    tl.store(meta + _IDS, last)
    tl.store(meta + _POSITIONS + places, following + places, mask=places <= COUNT)


@triton.jit
def deliver(meta, proposed, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """What was proposed becomes what the target reads behind the context's last token."""
    places = tl.arange(0, BLOCK)
    inside = places < COUNT
    tl.store(meta + _IDS + 1 + places, tl.load(proposed + places, mask=inside), mask=inside)
    tl.store(meta + _OFFERED, COUNT)


@triton.jit
def pair(
    meta,
    table,
    offered,
    embedding_norm,
    state_norm,
    hidden,
    scaled,
    eps,
    WIDTH: tl.constexpr,
    NORM_BEFORE_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What an EAGLE-3 head's attention reads of one token, [2 · WIDTH]: its normed embedding, then the normed state beside it.
    The layer adds to the state, or to the normed one."""
    row = tl.program_id(0)
    token = tl.load(meta + _IDS + row)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    embedded = tl.load(table + token * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    embedded *= tl.rsqrt(tl.sum(embedded * embedded, 0) / WIDTH + eps)
    embedded *= tl.load(embedding_norm + columns, mask=inside, other=0.0)
    state = tl.load(offered + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    normed = state * tl.rsqrt(tl.sum(state * state, 0) / WIDTH + eps)
    normed *= tl.load(state_norm + columns, mask=inside, other=0.0)
    tl.store(scaled + row * 2 * WIDTH + columns, embedded, mask=inside)
    tl.store(scaled + (row * 2 + 1) * WIDTH + columns, normed, mask=inside)
    if NORM_BEFORE_RESIDUAL:
        state = normed
    tl.store(hidden + row * WIDTH + columns, state, mask=inside)


@triton.jit
def reduce(
    states,
    matrix,
    reduced,
    WIDTH: tl.constexpr,
    READ: tl.constexpr,
    TOLD: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """The target's states as one each: matrix · the first READ of their TOLD numbers."""
    rows = tl.program_id(1) * TILE + tl.arange(0, TILE)
    outputs = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    made = tl.zeros((TILE, COLUMNS), tl.float32)
    for begin in range(0, READ, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        read = tl.load(states + rows[:, None] * TOLD + columns[None], mask=(columns < READ)[None], other=0.0)
        made = _times(read, matrix, outputs, columns, made, READ, WIDTH)
    tl.store(reduced + rows[:, None] * WIDTH + outputs[None], made, mask=(outputs < WIDTH)[None])
