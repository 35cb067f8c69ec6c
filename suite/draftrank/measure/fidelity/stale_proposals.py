"""Whether a draft proposes what its context says, and not what its cache still holds of other tokens.

A stale cache leaves the output right and lowers acceptance, so it is looked for by itself. In greedy modes one
step of every prompt turn's first repeat is drawn by the session's seed. After the block's times were taken, the
draft reads the same text anew, in a cache of its own, and is asked how far the tokens that it had proposed lie
below its best ones; of a tree the path that leads. Rounding explains small gaps, and larger ones in few steps. What was copied from the text must
be the same tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from draftrank.measure.records import Trial

if TYPE_CHECKING:
    from draftrank.engine.proposer import Proposal

STALE_GAP = 1.0
"""Logits by which a fresh cache may prefer another token, beside the largest rounding seen in the arm: the gap's change
between reading the output in one forward and token by token. torch's dynamic int8 rounds activations by all tokens of a
forward, so there it is several logits; elsewhere less than one, and 0 with kernels of our own."""
STALE_SHARE = 0.2
"""Largest share of the looked-at steps that may be further off: of those with one stale token in the cache, about half are."""
MIN_STALE = 3
"""Steps that must be further off at least, so that a short session is not judged by one or two."""


def step_to_check(
    proposals: Sequence[tuple[int, Proposal]], k: int, room: int, seed: str
) -> tuple[int, Proposal] | None:
    """Draws one step, of those that were asked for k tokens; None without any.

    Args:
        proposals: see `Decoding.proposals`.
        k: how many tokens a step may propose.
        room: most tokens of the output.
        seed: of the draw.
    """
    whole = [(stood, proposal) for stood, proposal in proposals if stood + k < room]
    return random.Random(seed).choice(whole) if whole else None  # (repeatable, not secret)


def stale_steps(trials: Iterable[Trial]) -> tuple[list[Trial], int]:
    """Trials whose looked-at step was stale, and how many were looked at."""
    looked_at = [(trial, trial.judgement.proposal) for trial in trials if trial.judgement is not None]
    known = [(trial, check) for trial, check in looked_at if check is not None]
    allowed = STALE_GAP + max((check.rounding for _, check in known), default=0.0)
    return [trial for trial, check in known if check.gap is None or check.gap > allowed], len(known)
