"""Whether a draft left a served target's output alone: where its outputs leave the plain server's.

Every greedy output is compared with the plain server's output at concurrency 1. Where they part, the plain server reads
prompt and common tokens again and tells log-probabilities: the gap of a token is its distance from the best one. A
divergence is a numerical tie if both tokens lie within a limit: 0.001 in fp32, 0.5 in any other dtype, the largest change
that bf16 rounding was seen to make (see [Fidelity](#fidelity)).

At concurrency 1 in fp32, outputs must be equal but for ties. In any other dtype, and at any higher concurrency, the
rounding depends on how many tokens share a forward, so that the plain server leaves its own output too. The plain arms
(baseline and control) show how often and how widely. Verifying k proposed tokens of one request has the shape of k+1
requests, so a draft is compared with the plain arms at its own concurrency and at all higher ones. It is lossless if its
divergences are

- no wider: each lies within the limit, or within the widest gap of a plain arm there, and
- no more: the share of each prompt turn's requests that diverge, less the plain arms' share at the concurrency where
  these diverge most, has no positive mean over the prompt turns (one-sided t-test). Requests of one turn repeat each
  other, so turns are counted and not requests. Where plain arms never diverge (one request in flight on a server that
  repeats itself exactly), only the gaps decide.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from draftrank.measure.serving_records import PromptTurn, Round, ServedRequest, ServingSession
from draftrank.measure.statistics.log_ratio import t_cdf

TIE_GAP_FP32 = 0.001
"""Largest gap of a numerical tie in fp32, in log-probability."""
TIE_GAP = 0.5
"""Largest gap of a numerical tie in any other dtype, in log-probability."""
DIVERGENCE_P = 0.001
"""Probability below which a draft diverges more often than the plain server. A board has many drafts and concurrencies,
and an honest one must not fail by chance."""

ServedStatus = Literal["identical", "ties", "as plain", "breaks", "unjudged", "not compared"]


@dataclass(frozen=True, slots=True)
class ServedFidelity:
    """Outputs of one arm at one concurrency against the plain server's at concurrency 1."""

    status: ServedStatus
    """`identical`; `ties`: every divergence is a numerical tie; `as plain`: some are wider, but no more and no wider than
    the plain server's own; `breaks`: they are; `unjudged`: the plain server was not asked about all of them; `not compared`: nothing is
    complete."""
    compared: int
    """Complete requests."""
    differing: int
    """Those that diverge."""
    words: str
    """The verdict in words."""

    @property
    def lossless(self) -> bool:
        """Whether rounding explains all of it."""
        return self.status not in ("breaks", "unjudged")


def compare_served(
    rounds: Sequence[Round], plain: Mapping[int, Sequence[Round]], concurrency: int, session: ServingSession
) -> ServedFidelity:
    """Judges an arm's outputs in its rounds that count, all at one concurrency; `plain` has the plain arms' rounds of
    every concurrency."""
    requests = _complete(rounds)
    if not requests:
        return ServedFidelity("not compared", 0, 0, "not compared")
    differing = [request for request in requests if _differs(request, session.turns)]
    if not differing:
        return ServedFidelity("identical", len(requests), 0, "identical")
    unjudged = sum(request.divergence is None for request in differing)
    limit = TIE_GAP_FP32 if session.dtype == "fp32" else TIE_GAP
    exact = session.dtype == "fp32" and concurrency == 1
    alike = {at: _complete(found) for at, found in plain.items() if at >= concurrency and not exact}
    shares = {at: _shares(found, session.turns) for at, found in alike.items()}
    most = max(shares.values(), key=lambda share: sum(share.values()), default={})
    gaps = [_gap(request, session.turns) for request in differing]
    owned = [_gap(request, session.turns) for found in alike.values() for request in found]
    widest = max((gap for gap in owned if gap is not None and gap < math.inf), default=0.0)
    reached = max((gap for gap in gaps if gap is not None), default=0.0)

    def judged(status: ServedStatus, words: str) -> ServedFidelity:
        of = f"{len(differing)} of {len(requests)} differ"
        return ServedFidelity(status, len(requests), len(differing), of + words)

    if unjudged:
        return judged("unjudged", f", {unjudged} of them not judged; run the same command again")
    if reached > max(limit, widest):
        request = differing[gaps.index(reached)]
        assert request.divergence is not None
        how = (
            "a token that the plain server does not name"
            if reached == math.inf
            else f"a gap of {reached:.3g}"
        )
        where = f"token {request.divergence.index} of {_name(session.turns[request.turn])}"
        return judged("breaks", f", e.g. by {how} at {where}; rounding explains {max(limit, widest):.3g}")
    if None in gaps and (exact or not any(most.values())):
        request = differing[gaps.index(None)]
        where = _name(session.turns[request.turn])
        return judged("breaks", f", e.g. {where} ends where the plain server goes on")
    if any(most.values()) and _more(_shares(requests, session.turns), most) < DIVERGENCE_P:
        own = f"{sum(most.values()) / len(most):.0%}"
        return judged("breaks", f", more than the plain server's own outputs do ({own})")
    if None not in gaps and reached <= limit:
        return judged("ties", " by rounding (numerical ties)")
    return judged("as plain", ", no more and no wider than the plain server's own")


def _name(turn: PromptTurn) -> str:
    return f"{turn.task}/{turn.prompt}" + (f" (turn {turn.turn})" if turn.turn else "")


def _complete(rounds: Iterable[Round]) -> list[ServedRequest]:
    return [request for one in rounds for request in one.requests if request.end != "failed"]


def _gap(request: ServedRequest, turns: Sequence[PromptTurn]) -> float | None:
    """How far the less likely of the two tokens lies from the best one; infinite for one that the plain server does not
    name. None where the output ended and the server does not tell how likely that was; 0 without a divergence."""
    divergence = request.divergence
    if divergence is None:
        return 0.0
    if divergence.gap is None and request.tokens <= divergence.index:
        return None
    gaps = [divergence.gap]
    if divergence.index < len(turns[request.turn].token_ids):
        gaps.append(divergence.plain_gap)
    return max(math.inf if gap is None else gap for gap in gaps)


def _differs(request: ServedRequest, turns: Sequence[PromptTurn]) -> bool:
    """Whether an output is not its turn's, judged or not."""
    if request.divergence is not None:
        return True
    return request.token_ids is not None and request.token_ids != turns[request.turn].token_ids


def _shares(requests: Iterable[ServedRequest], turns: Sequence[PromptTurn]) -> dict[int, float]:
    """By prompt turn, the share of its requests that diverge."""
    found: dict[int, list[bool]] = defaultdict(list)
    for request in requests:
        found[request.turn].append(_differs(request, turns))
    return {turn: sum(differs) / len(differs) for turn, differs in found.items()}


def _more(own: Mapping[int, float], other: Mapping[int, float]) -> float:
    """Probability of so positive a mean difference over the turns of both if there is none (one-sided t-test)."""
    apart = [own[turn] - other[turn] for turn in own.keys() & other.keys()]
    if len(apart) < 2:
        return 1.0
    mean, spread = fmean(apart), stdev(apart)
    if spread == 0.0:
        return 0.0 if mean > 0.0 else 1.0
    return 1 - t_cdf(mean / (spread / math.sqrt(len(apart))), len(apart) - 1)
