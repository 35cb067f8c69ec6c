"""Figures of a serving session: throughput, speedup, latencies and the switch-off point, from its rounds.

The unit is the round: all prompts, sent to one arm at one concurrency. The throughput of a round is the tokens of its
complete requests ÷ its wall seconds. A speedup is the geometric mean, over blocks, of the ratio of an arm's throughput to
the baseline's in the same block, with a 95 % t-interval of the mean log ratio (blocks − 1 degrees of freedom). Arms take
their rounds in an order drawn anew for each block, which is what makes these ratios independent of the machine's drift.

TPOT and TTFT are pooled over the requests of all rounds. The interval of their median is that value times e to the ± t standard
errors, from the spread of the logarithms of each round's median. That of the 99th percentile, by the same rule, is too narrow
(`docs/simulation.md`), so it is not shown.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal

from draftrank.measure.serving_records import Round
from draftrank.measure.statistics.estimates import Estimate, Interval, estimated, ratio
from draftrank.measure.statistics.log_ratio import LogRatio

Block = tuple[int, int]
"""Concurrency and index."""


@dataclass(frozen=True, slots=True)
class Latency:
    """A time per request over all rounds, in seconds."""

    median: Estimate
    p99: Estimate
    """99th percentile: the smallest time that 99 % of the requests do not exceed."""


@dataclass(frozen=True, slots=True)
class ServedAcceptance:
    """What the engine said of an arm's proposals, over all rounds of a concurrency."""

    length: float | None
    """Tokens after each request's first ÷ steps, where steps are these tokens less the accepted ones; None where more
    was accepted than emitted."""
    rate: float | None
    """Accepted ÷ proposed tokens; None where nothing was proposed, or the engine does not tell."""
    accepted: int
    proposed: int | None
    """None where the engine does not tell."""
    by_request: bool
    """Whether it comes from figures of each request; else from the server's counters, which may count accepted tokens
    behind an output's end."""


@dataclass(frozen=True, slots=True)
class SwitchOff:
    """Up to how many requests in flight a draft pays."""

    at: int | None
    """The switch-off point: the smallest measured concurrency at which the speedup's interval does not lie above 1; None
    where there is none, or nothing was measured."""
    words: str
    """Its uncertainty: `between 4 and 16`, `beyond 16`, `never pays`."""


def standing_rounds(rounds: Iterable[Round]) -> dict[Block, dict[str, Round]]:
    """By block, the rounds that count, by arm: of blocks measured again the fullest attempt, then the last.

    Rounds are comparable within one attempt only, whose minutes they share; one that was cut short is passed over.
    """
    attempts: dict[Block, dict[int, dict[str, Round]]] = defaultdict(lambda: defaultdict(dict))
    for one in rounds:
        attempts[one.concurrency, one.index][one.attempt][one.arm] = one
    return {
        block: max(found.items(), key=lambda entry: (len(entry[1]), entry[0]))[1]
        for block, found in sorted(attempts.items())
    }


def throughput_of(rounds: Sequence[Round]) -> float | None:
    """Tokens of complete requests per wall second, over all of these rounds."""
    return ratio(sum(one.tokens for one in rounds), math.fsum(one.wall_s for one in rounds))


def compare_rounds(pairs: Iterable[tuple[Round, Round]]) -> Estimate | None:
    """Throughput of the second of each pair over the first's; None without a pair in which both emitted something.

    The interval is None with fewer than two such pairs.
    """
    logs = []
    for first, second in pairs:
        own, other = ratio(second.tokens, second.wall_s), ratio(first.tokens, first.wall_s)
        if own and other:
            logs.append(math.log(own / other))
    return mean_log_ratio(logs)


def mean_log_ratio(logs: Sequence[float]) -> Estimate | None:
    """The geometric mean of ratios from their logarithms, with the t-interval of the mean; None without any."""
    if not logs:
        return None
    value = math.fsum(logs) / len(logs)
    if len(logs) < 2:
        return Estimate(math.exp(value), None)
    return estimated(math.exp(value), _around(value, logs))


def _around(value: float, logs: Sequence[float]) -> LogRatio:
    """A value with the error of the mean of these logarithms."""
    return LogRatio(value, stdev(logs) / math.sqrt(len(logs)), float(len(logs) - 1))


def latency_of(rounds: Sequence[Sequence[float]]) -> Latency | None:
    """Median and 99th percentile of times in seconds, given by round; None without any time.

    Intervals are None with fewer than two rounds that have one.
    """
    times = [found for found in rounds if len(found)]
    if not times:
        return None
    pooled = [time for found in times for time in found]

    def at(share: float) -> Estimate:
        value = _quantile(pooled, share)
        logs = [math.log(own) for found in times if (own := _quantile(found, share)) > 0.0]
        if len(logs) < 2 or len(logs) < len(times) or value <= 0.0:
            return Estimate(value, None)
        return estimated(value, _around(math.log(value), logs))

    return Latency(at(0.5), at(0.99))


def _quantile(times: Sequence[float], share: float) -> float:
    """The smallest of the times that so large a share of them does not exceed."""
    return sorted(times)[max(math.ceil(share * len(times) - 1e-9), 1) - 1]


def acceptance_of(rounds: Sequence[Round]) -> ServedAcceptance | None:
    """From figures of each request where all complete ones have them, else from the counters of all rounds, else None."""
    complete = [request for one in rounds for request in one.requests if request.end != "failed"]
    if not complete:
        return None
    by_request = all(request.accepted is not None for request in complete)
    counters = [one.counters for one in rounds if one.counters is not None]
    if by_request:
        accepted = sum(request.accepted or 0 for request in complete)
        told = [request.proposed for request in complete if request.proposed is not None]
        proposed = sum(told) if len(told) == len(complete) else None
    elif len(counters) == len(rounds):
        accepted = sum(found.accepted for found in counters)
        proposed = sum(found.proposed for found in counters)
    else:
        return None
    decoded = sum(request.tokens - 1 for request in complete)
    length = ratio(decoded, decoded - accepted) if decoded > accepted else None
    rate = None if proposed is None else ratio(accepted, proposed)
    return ServedAcceptance(length, rate, accepted, proposed, by_request)


def switch_off(speedups: Mapping[int, Interval | None]) -> SwitchOff:
    """Where a draft stops paying, from the intervals of its speedup by concurrency; None where one is unknown."""
    known = {concurrency: found for concurrency, found in sorted(speedups.items()) if found is not None}
    if not known:
        return SwitchOff(None, "unknown")
    pays = [concurrency for concurrency, found in known.items() if found.low > 1.0]
    loses = [concurrency for concurrency, found in known.items() if found.high < 1.0]
    unclear = [concurrency for concurrency in known if concurrency not in (*pays, *loses)]
    at = next((concurrency for concurrency in known if concurrency not in pays), None)
    if not pays:
        words = "never pays" if not unclear else f"no sure gain, unclear at {_listed(unclear)}"
        return SwitchOff(at, words)
    last = pays[-1]
    lost = next((concurrency for concurrency in loses if concurrency > last), None)
    words = f"beyond {last}" if lost is None else f"between {last} and {lost}"
    apart = [concurrency for concurrency in unclear if lost is None or concurrency < last]
    if apart:
        words += f", unclear at {_listed(apart)}"
    early = [concurrency for concurrency in loses if concurrency < last]
    if early:
        words += f", not at {_listed(early)}"
    return SwitchOff(at, words)


def times_of(rounds: Iterable[Round], name: Literal["tpot_s", "ttft_s"]) -> list[list[float]]:
    """Seconds per output token after the first, or to the first token, of each complete request that has them, by round."""
    return [
        [
            time
            for request in one.requests
            if request.end != "failed" and (time := getattr(request, name)) is not None
        ]
        for one in rounds
    ]


def energy_per_token(rounds: Sequence[Round]) -> float | None:
    """Joules per token of a complete request; None unless every round has its energy."""
    joules = [one.energy_j for one in rounds if one.energy_j is not None]
    if not rounds or len(joules) < len(rounds):
        return None
    return ratio(math.fsum(joules), sum(one.tokens for one in rounds))


def mean_known(values: Iterable[float | None]) -> float | None:
    """The mean of those that are known; None without any."""
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _listed(concurrencies: Sequence[int]) -> str:
    *first, last = map(str, concurrencies)
    return f"{', '.join(first)} and {last}" if first else last
