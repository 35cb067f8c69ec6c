"""Whether a draft proposes what its context says, and not what its cache still holds of other tokens.

A stale KV cache of the draft leaves the output right and lowers acceptance, so it has its own check. In
greedy modes the session's seed selects for each draft some prompt turns, and one step of each. After the
block's last trial, the draft reads the same text again with a fresh cache. The check measures how far the proposed tokens
(of a tree: the path of its best tokens) lie below the best ones of the fresh cache. Rounding explains small
gaps, and larger ones in few steps. Tokens copied from the text must be equal.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from draftrank.measure.records import Trial

if TYPE_CHECKING:
    from draftrank.engine.proposer import Proposal

CHECKED_TURNS = 8
"""Prompt turns that are selected for each draft, on average; of a session of fewer than twice as many, all."""
STALE_GAP = 1.0
"""Logits by which a fresh cache may prefer another token, in addition to the largest rounding seen in the
arm: the change of the gap between reading the output in one forward and token by token, where the first
reading prefers another token. torch's dynamic int8
rounds activations by all tokens of a forward, so its rounding is several logits; elsewhere it is less than
one, and 0 in the backends `cpp` and `cuda-graphs`."""
STALE_SHARE = 0.2
"""Largest share of checked steps that may exceed the gap. With one stale token in the cache, about half of
the steps do."""
MIN_STALE = 3
"""Minimum of steps that must exceed the gap, so that one or two steps do not decide a short session."""


def step_to_check(
    proposals: Sequence[tuple[int, Proposal]], k: int, room: int, turns: int, seed: str
) -> tuple[int, Proposal] | None:
    """Draws whether to check a prompt turn, and one of its steps that were asked for k tokens; None without any.

    `proposals` are `Decoding.proposals`, `room` is the most tokens of the output, and `turns` the prompt turns of the
    session.
    """
    drawn = random.Random(seed)  # repeatable, not secret
    whole = [(stood, proposal) for stood, proposal in proposals if stood + k < room]
    return drawn.choice(whole) if not drawn.randrange(max(1, turns // CHECKED_TURNS)) and whole else None


def stale_steps(trials: Iterable[Trial]) -> tuple[list[Trial], int]:
    """Trials whose looked-at step was stale, and how many were looked at."""
    looked_at = [(trial, trial.judgement.proposal) for trial in trials if trial.judgement is not None]
    known = [(trial, check) for trial, check in looked_at if check is not None]
    allowed = STALE_GAP + max((check.rounding for _, check in known), default=0.0)
    return [trial for trial, check in known if check.gap is None or check.gap > allowed], len(known)
