"""One round of a serving session: in which order requests are sent, and the record of what came back."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from draftrank.measure.fidelity.divergence import first_difference
from draftrank.measure.machine.conditions import ThisMachine
from draftrank.measure.machine.counters import Counters as MachineCounters
from draftrank.measure.serving_records import (
    Counters,
    PromptTurn,
    Round,
    ServedDivergence,
    ServedRequest,
)
from draftrank.serving.base import CompletionRequest, Counts, Engine
from draftrank.serving.http import Client
from draftrank.serving.load import Answer, Load
from draftrank.serving.sending import in_turn

MIN_REQUESTS_PER_SLOT = 2
"""Requests of a round for every request in flight: with fewer, most of a round is its beginning and its end."""
TOP = 20
"""How many of the most likely tokens the plain server is asked for at a divergence; no engine tells fewer at most."""
_TEXT = 4000
"""Characters of a failure's reason that are kept."""


class ServingMachine(ThisMachine):
    """Reads the machine for a round: the processors that the arm's server takes are its own, as the client's are."""

    def __init__(self, device: Literal["cpu", "cuda"]) -> None:
        super().__init__(device)
        self.server_cpu_s: Callable[[], float] = lambda: 0.0
        """Processor seconds of the server that has load."""

    def counters(self) -> MachineCounters:
        found = super().counters()
        return replace(found, own_s=found.own_s + self.server_cpu_s())


@dataclass(frozen=True, slots=True)
class Place:
    """Where a round stands in its session."""

    arm: str
    concurrency: int
    rate: float | None
    index: int
    position: int
    attempt: int
    process: int


def order_of(turns: int, place: Place, seed: int) -> list[int]:
    """Indices of turns in the order of sending: each turn equally often, shuffled for every block, the same for all its arms."""
    passes = max(1, -(-MIN_REQUESTS_PER_SLOT * place.concurrency // turns))
    order = list(range(turns)) * passes
    random.Random(f"{seed}/{place.concurrency}/{place.index}").shuffle(order)
    return order


def moments_of(count: int, place: Place, seed: int) -> list[float] | None:
    """Poisson arrivals in seconds after the start, alike for the arms of a block; None for a closed loop."""
    if place.rate is None:
        return None
    gaps = random.Random(f"{seed}/{place.concurrency}/{place.index}/arrivals")
    moments, now = [], 0.0
    for _ in range(count):
        moments.append(now)
        now += gaps.expovariate(place.rate)
    return moments


def requests_of(load: Load, turns: Sequence[PromptTurn], *, drafted: bool) -> tuple[ServedRequest, ...]:
    """The records of a round's requests, in the order in which they were sent; `drafted`: the arm has a draft."""
    return tuple(_request(answer, load.began, turns[answer.request], drafted) for answer in load.answers)


def _request(answer: Answer, began: float, turn: PromptTurn, drafted: bool) -> ServedRequest:
    sent = max(0, round((answer.sent - began) * 1e6))
    completion = answer.completion
    if completion is None:
        reason = (answer.failure or "it failed")[:_TEXT]
        return ServedRequest(turn=answer.request, sent_us=sent, end="failed", failure=reason)
    arrived = sum(tokens for _, tokens in completion.arrivals)
    if arrived != len(completion.token_ids):
        reason = f"the server counts {arrived} tokens, and {len(completion.token_ids)} came"
        return ServedRequest(turn=answer.request, sent_us=sent, end="failed", failure=reason)
    moments = [sent, *(max(sent, round((moment - began) * 1e6)) for moment, _ in completion.arrivals)]
    told = drafted and completion.figures
    possible = 0 <= completion.accepted < arrived  # where it is not, the disagreement says so
    return ServedRequest(
        turn=answer.request,
        sent_us=sent,
        arrivals_us=tuple(
            now - before
            for before, now in zip(moments, moments[1:], strict=False)  # noqa: RUF007
        ),
        arrival_tokens=tuple(tokens for _, tokens in completion.arrivals),
        token_ids=None if completion.token_ids == turn.token_ids else completion.token_ids,
        end=completion.finish,
        accepted=completion.accepted if told and possible else None,
        proposed=completion.proposed if told else None,
        disagreement=None if completion.joined else completion.disagreement,
    )


def counters_between(before: Counts | None, after: Counts | None) -> tuple[Counters | None, bool]:
    """What a server counted in a round, and whether its counters show that it started anew meanwhile."""
    if before is None or after is None:
        return None, before is not None  # they were there and are gone
    passed = after.since(before)
    if passed is None:
        return None, True
    return Counters(drafts=passed.drafts, proposed=passed.proposed, accepted=passed.accepted), False


def diverged(rounds: Sequence[Round], turns: Sequence[PromptTurn]) -> Iterator[tuple[int, int]]:
    """Where outputs left their turn's and nobody has judged it yet: each (turn, index) once."""
    seen: set[tuple[int, int]] = set()
    for one in rounds:
        for request in one.requests:
            index = _unjudged(request, turns)
            if index is not None and (request.turn, index) not in seen:
                seen.add((request.turn, index))
                yield request.turn, index


def _unjudged(request: ServedRequest, turns: Sequence[PromptTurn]) -> int | None:
    if request.token_ids is None or request.end == "failed" or request.divergence is not None:
        return None
    return first_difference(turns[request.turn].token_ids, request.token_ids)


Told = dict[tuple[int, int], dict[int, float]]
"""By turn and index: log-probabilities of the most likely tokens there, as the plain server tells them."""


def told_at(
    engine: Engine,
    client: Client,
    prompts: Sequence[CompletionRequest],
    turns: Sequence[PromptTurn],
    places: Sequence[tuple[int, int]],
    done: Callable[[], None],
) -> Told:
    """Asks the plain server for the most likely tokens behind prompt and common tokens.

    Raises:
        ServerError: it failed.
    """
    asked = [
        replace(
            prompts[turn],
            prompt=(*prompts[turn].prompt, *turns[turn].token_ids[:index]),
            max_new_tokens=1,
            top=TOP,
        )
        for turn, index in places
    ]
    found = in_turn(engine, client, asked, done)
    return {
        place: dict(completion.top[0]) if completion.top else {}
        for place, completion in zip(places, found, strict=True)
    }


def judged(one: Round, turns: Sequence[PromptTurn], told: Told) -> Round:
    """The round with a divergence for every output that left its turn's where the plain server was asked."""
    requests = []
    for request in one.requests:
        index = _unjudged(request, turns)
        known = None if index is None else told.get((request.turn, index))
        if index is not None and known is not None:
            assert request.token_ids is not None
            divergence = ServedDivergence(
                index=index,
                gap=_gap(known, request.token_ids, index),
                plain_gap=_gap(known, turns[request.turn].token_ids, index),
            )
            request = request.model_copy(update={"divergence": divergence})
        requests.append(request)
    return one.model_copy(update={"requests": tuple(requests)})


def _gap(told: dict[int, float], tokens: Sequence[int], index: int) -> float | None:
    """To the best token; None where the output ended there, or the server did not name its token."""
    if index >= len(tokens) or tokens[index] not in told:
        return None
    return max(0.0, max(told.values()) - told[tokens[index]])
