"""Where a sequence stands, as kernels read it: int64 on the device, so that a captured graph serves every length."""

from __future__ import annotations

from draftrank.engine.token_tree import MAX_TREE_TOKENS

MAX_ROWS = MAX_TREE_TOKENS
"""Most tokens of one forward: the bits of a number say which of them a token sees."""
START, ROOT, END, ROW, STEP, OFFERED = range(6)
"""Slot of the first token of this forward; slot and position of the root of its tree; first slot behind it; the row whose
choice a chain goes on with; how many tokens the chain has; how many of the ids, behind the first, were proposed."""
IDS = OFFERED + 1
POSITIONS = IDS + MAX_ROWS
ANCESTORS = POSITIONS + MAX_ROWS
SIZE = ANCESTORS + MAX_ROWS
"""Numbers in all; ids, positions and ancestors (see `TokenTree.ancestors`) of each row."""
