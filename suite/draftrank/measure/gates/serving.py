"""What an arm of a serving session must pass at a concurrency to be ranked there.

As in `verdict`, each gate is a function that gives the values of its reason when it is failed, and the methodology page
lists them from `SERVING_GATES`. A draft may pass at one request in flight and fail at sixteen, so every concurrency is
judged by itself. What a speedup rests on is judged too: the rounds of the baseline in the same blocks.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise

from draftrank.measure.gates.clocks import OVERLAP_S, OVERLAP_SHARE, seconds_of
from draftrank.measure.gates.gate import Gate, Values, Verdict, gate, put_through
from draftrank.measure.gates.plausibility import by_chance, told
from draftrank.measure.gates.verdict import differs, spreads
from draftrank.measure.machine.disturbance import Kind, disturbances
from draftrank.measure.serving_records import PromptTurn, Round, ServedRequest, ServingArm
from draftrank.measure.statistics.estimates import Interval, ratio_end
from draftrank.measure.summaries.serving import ServedArm, ServedCell, ServingSummary

MIN_ROUNDS = 4
"""Pairs of rounds below which a speedup is not ranked: the t-interval of three is 4.3 standard errors wide to each side, and
chance decides whether their order cancels the machine's drift."""
CLIENT_CPU = 0.5
"""Processors that the client may keep busy. It is a single process: beyond half a processor tokens begin to wait for it, and
on a small machine it takes time that the server needs."""
DISTURBED_BLOCKS = 0.2
"""Largest share of the watched blocks of a concurrency that may stay disturbed: one of five to nine."""
WALL_TOLERANCE = 0.02
"""Share by which the wall seconds of a round may differ from the time between its first request and its last token,
beside 0.1 s."""
_WALL_S = 0.1
_AGAIN = "run the same command again"


def judge_served(summary: ServingSummary, arm: ServedArm, concurrency: int) -> Verdict:
    """Puts one arm through all gates at one concurrency of its session."""
    return put_through(SERVING_GATES, summary, arm, arm.cells[concurrency])


@gate("failed", "draft", "failed: {failure}")
def _failed(summary: ServingSummary, arm: ServedArm, cell: ServedCell) -> Values | None:  # noqa: ARG001
    """The draft could not be built or exported, its server did not start, or it broke in a round."""
    return None if arm.arm.failure is None else {"failure": arm.arm.failure}


@gate("unplanned", "session", "not as planned: {what}")
def _unplanned(summary: ServingSummary, arm: ServedArm, cell: ServedCell) -> Values | None:  # noqa: ARG001
    """Arms, concurrencies and the rate of arrivals are planned before the first round, so nobody can choose them
    afterwards."""
    return told(summary.unplanned)


@gate("incomplete", "draft", f"incomplete: {{what}}; {_AGAIN} to fill it")
def _incomplete(summary: ServingSummary, arm: ServedArm, cell: ServedCell) -> Values | None:
    """Every planned round must be there. Each sends every prompt turn equally often, as often as the baseline's round of its
    block: other prompts have other speedups."""
    planned, turns = summary.session.rounds, len(summary.session.turns)
    faults = []
    if len(cell.rounds) < planned:
        faults.append(f"{planned - len(cell.rounds)} of {planned} rounds are missing")
    for one in _judged(summary, arm, cell):
        sent = Counter(request.turn for request in one.requests)
        if len(sent) < turns:
            faults.append(f"{_place(one)} misses {turns - len(sent)} of {turns} prompt turns")
        elif len(set(sent.values())) > 1:
            faults.append(f"{_place(one)} sends some prompt turns more often than others")
    for baseline, own in cell.pairs:
        if len(baseline.requests) != len(own.requests):
            faults.append(
                f"{_place(own)} has {len(own.requests)} requests, the plain server's {len(baseline.requests)}"
            )
    return told(faults)


@gate(
    "unpaired",
    "draft",
    f"unpaired: {{alone}} of {{rounds}} rounds have no round of the plain server beside them; {_AGAIN}",
)
def _unpaired(summary: ServingSummary, arm: ServedArm, cell: ServedCell) -> Values | None:  # noqa: ARG001
    """A round counts only beside the baseline's round of the same block, because the machine drifts between blocks."""
    alone = len(cell.rounds) - len(cell.pairs)
    return {"alone": str(alone), "rounds": str(len(cell.rounds))} if alone else None


@gate(
    "failed-requests", "draft", "failed requests: {failed} of {of}, first in {example}; see the server's log"
)
def _failed_requests(summary: ServingSummary, arm: ServedArm, cell: ServedCell) -> Values | None:
    """No request may fail, of the draft or of the baseline: a server that drops requests has time for the others."""
    rounds = _judged(summary, arm, cell)
    failed = [(one, request) for one in rounds for request in one.requests if request.end == "failed"]
    if not failed:
        return None
    one, request = failed[0]
    of = sum(len(found.requests) for found in rounds)
    return {"failed": str(len(failed)), "of": str(of), "example": f"{_place(one)}: {request.failure}"}


@gate("truncated", "draft", "truncated: {what}; see the server's log")
def _truncated(summary: ServingSummary, arm: ServedArm, cell: ServedCell) -> Values | None:
    """An output ends at a stop token or at its limit. One that ends before its limit without a stop token was cut off, and
    none goes on behind its limit."""
    turns = summary.session.turns
    return told(
        f"{_place(one)}: {fault}"
        for one in _judged(summary, arm, cell)
        for request in one.requests
        if request.end != "failed"
        for fault in _end_faults(request, turns[request.turn])
    )


@gate("restarted", "draft", "restarted: the server of {arm} was started anew between rounds; see its log")
def _restarted(summary: ServingSummary, arm: ServedArm, cell: ServedCell) -> Values | None:
    """A server that started anew between the rounds of one process broke before, and its first requests met it cold."""
    known = {found.arm.id: found for found in summary.arms}
    for one in _judged(summary, arm, cell):
        starts: dict[int, set[int]] = defaultdict(set)
        for own in known[one.arm].cells.values():
            for found in own.rounds:
                starts[found.process].add(found.server_started)
        if any(len(numbers) > 1 for numbers in starts.values()):
            return {"arm": one.arm}
    return None


@gate(
    "contradictory-counts",
    "draft",
    "contradictory counts: {what}; the engine's figures of acceptance are wrong, so report it",
)
def _contradictory_counts(summary: ServingSummary, arm: ServedArm, cell: ServedCell) -> Values | None:
    """The engine's figures of each request, its counters and the outputs must fit each other: a step emits one token and
    those it accepted, of k proposed at most. Counters may contain up to k accepted tokens behind each output's end. The
    plain servers propose nothing."""
    arms = {found.arm.id: found.arm for found in summary.arms}
    return told(
        f"{_place(one)}: {fault}"
        for one in _judged(summary, arm, cell)
        for fault in _count_faults(one, arms[one.arm])
    )


@gate("implausible-times", "draft", "implausible times: {what}; run it again")
def _implausible_times(summary: ServingSummary, arm: ServedArm, cell: ServedCell) -> Values | None:
    """A round's wall seconds are the time from its first request to its last token, no more requests are in flight than
    its concurrency, and no two rounds of a session overlap: only one server has load at a time."""
    own = _judged(summary, arm, cell)
    faults = [f"{_place(one)}: {fault}" for one in own for fault in _time_faults(one)]
    ids = {id(one) for one in own}
    try:
        everything = sorted(
            (one for block in summary.blocks.values() for one in block.values()),
            key=lambda one: seconds_of(one.started_at),
        )
        for before, after in pairwise(everything):
            over = seconds_of(before.started_at) + before.wall_s - seconds_of(after.started_at)
            allowed = OVERLAP_S + OVERLAP_SHARE * before.wall_s
            if over > allowed and {id(before), id(after)} & ids:
                faults.append(f"{_place(before)} ran {over:.1f} s into {_place(after)}")
    except ValueError as error:
        faults.append(f"the time a round began is unreadable ({error})")
    return told(faults)


@gate("not-lossless", "draft", "not lossless: {words}")
def _not_lossless(summary: ServingSummary, arm: ServedArm, cell: ServedCell) -> Values | None:  # noqa: ARG001
    """Greedy outputs must be the plain server's, but for rounding: in fp32 at concurrency 1 numerical ties alone, otherwise
    divergences no more and no wider than the plain server's own."""
    return None if cell.fidelity.lossless else {"words": cell.fidelity.words}


@gate(
    "implausible-acceptance", "draft", "implausible: the acceptance length {length} lies outside [1, {most}]"
)
def _implausible_acceptance(summary: ServingSummary, arm: ServedArm, cell: ServedCell) -> Values | None:  # noqa: ARG001
    """A step emits at least one token and at most k+1, so the acceptance length lies between 1 and k+1."""
    most = arm.arm.num_speculative_tokens + 1
    acceptance = cell.acceptance
    if acceptance is None or not any(request.tokens > 1 for one in cell.rounds for request in one.requests):
        return None
    if acceptance.length is not None and 1 <= acceptance.length <= most:
        return None
    length = "infinite" if acceptance.length is None else f"{acceptance.length:.2f}"
    return {"length": length, "most": str(most)}


@gate(
    "implausible-speedup",
    "draft",
    "implausible: {speedup}× (at least {low}×) is more than the {bound} tokens of a step allow; run it again",
)
def _implausible_speedup(summary: ServingSummary, arm: ServedArm, cell: ServedCell) -> Values | None:
    """A step costs at least one forward of the target, so no draft is faster than its acceptance length allows, or k+1 where
    the engine tells none. The lower end of the speedup's interval must not exceed it, with a tolerance from the A/A."""
    if arm.arm.kind != "draft" or cell.speedup is None or cell.speedup.interval is None:
        return None
    length = cell.acceptance.length if cell.acceptance else None
    bound = length or arm.arm.num_speculative_tokens + 1
    if cell.speedup.interval.low <= bound * by_chance(summary.noise(cell.concurrency)):
        return None
    return {
        "speedup": f"{cell.speedup.value:.2f}",
        "low": ratio_end(cell.speedup.interval.low),
        "bound": ratio_end(bound),
    }


@gate(
    "proposes-nothing",
    "draft",
    "proposes nothing: not one token, so this is a plain server; check the speculative configuration",
)
def _proposes_nothing(summary: ServingSummary, arm: ServedArm, cell: ServedCell) -> Values | None:  # noqa: ARG001
    """A draft of which no token was proposed is a plain server: its row would rank the session's noise. An engine that does
    not tell proposed tokens, as SGLang, passes."""
    return {} if cell.acceptance is not None and cell.acceptance.proposed == 0 else None


@gate(
    "too-few-rounds",
    "session",
    "too few rounds: {pairs} where {least} are the minimum; measure with more --rounds",
)
def _too_few_rounds(summary: ServingSummary, arm: ServedArm, cell: ServedCell) -> Values | None:  # noqa: ARG001
    """The spread between rounds must be known to say how sure a speedup is."""
    return {"pairs": str(len(cell.pairs)), "least": str(MIN_ROUNDS)} if len(cell.pairs) < MIN_ROUNDS else None


@gate(
    "client-bound",
    "session",
    "the client was the bottleneck: it kept {cpu} processors busy where {most} are the limit; run it on another machine "
    "than the server",
)
def _client_bound(summary: ServingSummary, arm: ServedArm, cell: ServedCell) -> Values | None:
    """The client must not be what limits throughput: its processor time is taken in every round."""
    busiest = max((one.client_cpu or 0.0 for one in _judged(summary, arm, cell)), default=0.0)
    return {"cpu": f"{busiest:.2f}", "most": f"{CLIENT_CPU:g}"} if busiest > CLIENT_CPU else None


@gate(
    "disturbed",
    "session",
    "unstable: the machine was disturbed in {share} of the blocks (e.g. {example}); {fix}",
)
def _disturbed(summary: ServingSummary, arm: ServedArm, cell: ServedCell) -> Values | None:  # noqa: ARG001
    """The machine must be free for the client and the one server that has load. Other processes count, and idle servers
    of the session do too. A block that is disturbed is measured again, and no more than one in five may stay so. Rounds
    that were not watched pass."""
    return _not_calm(summary, cell, "disturbed")


@gate(
    "throttled",
    "session",
    "unstable: the machine was slowed down in {share} of the blocks (e.g. {example}); {fix}",
)
def _throttled(summary: ServingSummary, arm: ServedArm, cell: ServedCell) -> Values | None:  # noqa: ARG001
    """The machine must keep its speed: no more than one block in five may be slowed down by a container's quota or by
    lowered clocks. Rounds that were not watched pass."""
    return _not_calm(summary, cell, "throttled")


@gate(
    "no-noise-floor",
    "session",
    "noise unknown: the session has no A/A comparison; run it again with the control arm",
)
def _no_noise_floor(summary: ServingSummary, arm: ServedArm, cell: ServedCell) -> Values | None:  # noqa: ARG001
    """A session measures its plain server in two arms. Their difference is its noise floor at each concurrency."""
    return {} if _noise(summary, cell) is None else None


@gate(
    "unstable",
    "session",
    "unstable: the plain server against its twin came out at {low}–{high} instead of 1; run it again on a quiet machine",
)
def _unstable(summary: ServingSummary, arm: ServedArm, cell: ServedCell) -> Values | None:  # noqa: ARG001
    """The plain server measured against its twin must come out at 1: its interval must reach to within 1 % of it."""
    interval = _noise(summary, cell)
    if interval is None or not differs(interval):
        return None
    return {"low": f"{interval.low:.3f}", "high": f"{interval.high:.3f}"}


@gate(
    "noisy",
    "session",
    "noisy: the plain server against its twin spreads by ±{width}; run it again on a quiet machine, with more rounds",
)
def _noisy(summary: ServingSummary, arm: ServedArm, cell: ServedCell) -> Values | None:  # noqa: ARG001
    """An A/A interval wider than ±15 % says too little about any draft at this concurrency."""
    interval = _noise(summary, cell)
    return {"width": f"{interval.half_width:.1%}"} if interval is not None and spreads(interval) else None


def _judged(summary: ServingSummary, arm: ServedArm, cell: ServedCell) -> list[Round]:
    """The rounds of an arm at a concurrency, and the baseline's there."""
    baseline = summary.baseline
    beside = baseline.cells[cell.concurrency].rounds if baseline and baseline is not arm else ()
    return [*cell.rounds, *beside]


def _noise(summary: ServingSummary, cell: ServedCell) -> Interval | None:
    noise = summary.noise(cell.concurrency)
    return noise.interval if noise else None


def _place(one: Round) -> str:
    return f"round {one.index} of {one.arm}"


def _end_faults(request: ServedRequest, turn: PromptTurn) -> Iterator[str]:
    if request.tokens > turn.max_new_tokens:
        yield f"{request.tokens} tokens where {turn.max_new_tokens} are the limit"
    elif request.end == "length" and request.tokens < turn.max_new_tokens:
        yield f"an output was cut off after {request.tokens} of {turn.max_new_tokens} tokens"


def _count_faults(one: Round, arm: ServingArm) -> Iterator[str]:
    k, counters = arm.num_speculative_tokens, one.counters
    complete = [request for request in one.requests if request.end != "failed"]
    decoded = sum(request.tokens - 1 for request in complete)
    for request in complete:
        if request.disagreement is not None:
            yield request.disagreement
        # Steps emit one token and what they accepted, so a step accepts k of k+1 tokens at most.
        if request.accepted is not None and request.accepted * (k + 1) > k * (request.tokens - 1):
            yield f"{request.accepted} of {request.tokens} tokens accepted, with {k} proposed per step"
        if (
            request.accepted is not None
            and request.proposed is not None
            and request.accepted > request.proposed
        ):
            yield f"{request.accepted} tokens accepted of {request.proposed} proposed"
    if counters is None:
        return
    beyond = k * len(one.requests)
    if counters.accepted > counters.proposed or counters.proposed > k * counters.drafts:
        yield (
            f"the counters tell {counters.accepted} accepted tokens of {counters.proposed} proposed in "
            f"{counters.drafts} steps of {k}"
        )
    if len(complete) < len(one.requests):
        return  # what failed requests took cannot be told apart
    if counters.drafts + counters.accepted > decoded + beyond:
        yield (
            f"the counters tell {counters.drafts} steps and {counters.accepted} accepted tokens for {decoded} tokens "
            "behind the first"
        )
    if complete and all(request.accepted is not None for request in complete):
        accepted = sum(request.accepted or 0 for request in complete)
        if not accepted <= counters.accepted <= accepted + beyond:
            yield f"the counters tell {counters.accepted} accepted tokens, the requests {accepted}"


def _time_faults(one: Round) -> Iterator[str]:
    if not one.requests:
        return
    if all(request.end != "failed" for request in one.requests):
        spent = (
            max(request.done_us for request in one.requests)
            - min(request.sent_us for request in one.requests)
        ) / 1e6
        if abs(one.wall_s - spent) > WALL_TOLERANCE * spent + _WALL_S:
            yield f"{one.wall_s:.2f} wall seconds for {spent:.2f} s of requests"
    moments = [(request.sent_us, 1) for request in one.requests if request.end != "failed"]
    moments += [(request.done_us, -1) for request in one.requests if request.end != "failed"]
    flying = most = 0
    for _, change in sorted(moments):
        flying += change
        most = max(most, flying)
    if most > one.concurrency:
        yield f"{most} requests in flight at concurrency {one.concurrency}"


def _not_calm(summary: ServingSummary, cell: ServedCell, kind: Kind) -> Values | None:
    watched, found = 0, []
    for (concurrency, _), block in summary.blocks.items():
        if concurrency == cell.concurrency:
            conditions = [one.conditions for one in block.values() if one.conditions is not None]
            watched += bool(conditions)
            broken = disturbances(conditions, summary.session.machine.cores)
            found += [one for one in broken if one.rule.kind == kind][:1]
    if not found or len(found) <= DISTURBED_BLOCKS * watched:
        return None
    return {"share": f"{len(found) / watched:.0%}", "example": found[0].reason, "fix": found[0].rule.fix}


SERVING_GATES: tuple[Gate, ...] = (
    _failed, _unplanned, _incomplete, _unpaired, _failed_requests, _truncated, _restarted,
    _contradictory_counts, _implausible_times, _not_lossless, _implausible_acceptance,
    _implausible_speedup, _proposes_nothing, _too_few_rounds, _client_bound, _disturbed, _throttled,
    _no_noise_floor, _unstable, _noisy,
)  # fmt: skip
