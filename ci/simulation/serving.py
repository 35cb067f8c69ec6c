"""Serving sessions drawn from a known truth: how often the intervals of their speedups and latencies hold it.

The model, on the logarithmic scale, of the throughput of arm a in a block of one concurrency:

    log speedup of a − drift at that moment − lasting noise at that moment − noise of the round

Drift and lasting noise are those of `sessions`, over the rounds in the order in which they are measured. A round takes
minutes, so that a session has few, and the machine's drift (a line and a wave of up to three periods) is as fast as a
pattern of arms that repeats with every second block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from draftrank.measure.records import BASELINE, CONTROL
from draftrank.measure.sessions.schedule import round_order
from draftrank.measure.statistics.log_ratio import Floats, LogRatio
from draftrank.measure.statistics.serving import latency_of, mean_log_ratio
from simulation.coverage import Coverage, Share
from simulation.interval_methods import Ends, counts_of, ends_of, percentiles
from simulation.sessions import moments

Order = Literal["drawn", "ABBA"]


@dataclass(frozen=True, slots=True)
class ServingScenario:
    """How the rounds of one concurrency come about. Spreads are standard deviations of logarithms."""

    blocks: int = 6
    drafts: int = 3
    """Arms beside the baseline and its twin; the last one is judged."""
    order: Order = "drawn"
    """Of the arms in each block: drawn anew (`round_order`), or forwards and backwards in turns."""
    noise: float = 0.01
    """Of a single round."""
    draft_noise: float | None = None
    """Of the judged draft's; None: as all others."""
    lasting_noise: float = 0.02
    """Of the autoregressive series."""
    lasting: float = 0.8
    """Correlation of that series from one round to the next."""
    drift: float = 0.2
    """From the first round to the last; random in direction, with a wave a third as high."""
    speedup: float = 1.3


@dataclass(frozen=True, slots=True)
class SimulatedRounds:
    """What the rounds of one concurrency gave."""

    logs: Floats
    """(blocks, arms) logarithms of throughput; the baseline first, then its twin."""
    places: Floats
    """(blocks, arms) place of each round in its block."""


def draw_rounds(scenario: ServingScenario, plan: str, generator: np.random.Generator) -> SimulatedRounds:
    """The rounds of one session; equal generators and plans give equal ones."""
    arms = [BASELINE, CONTROL, *(f"d{index}" for index in range(scenario.drafts))]
    moment = moments(
        scenario.blocks * len(arms),
        generator,
        drift=scenario.drift,
        lasting=scenario.lasting,
        lasting_noise=scenario.lasting_noise,
    ).reshape(scenario.blocks, len(arms))
    noise = scenario.noise * generator.standard_normal(moment.shape)
    if scenario.draft_noise is not None:
        noise[:, -1] *= scenario.draft_noise / scenario.noise
    places = np.empty_like(moment)
    for index in range(scenario.blocks):
        order = list(arms) if scenario.order == "ABBA" else list(round_order(arms, plan, 1, index))
        if scenario.order == "ABBA" and index % 2:
            order.reverse()
        places[index] = [order.index(arm) for arm in arms]
    logs = -np.take_along_axis(moment, places.astype(np.int64), axis=1) - noise
    logs[:, -1] += math.log(scenario.speedup)
    return SimulatedRounds(logs, places)


Method = Callable[[SimulatedRounds, int, np.random.Generator], Ends]


def paired_t(rounds: SimulatedRounds, arm: int, generator: np.random.Generator) -> Ends:  # noqa: ARG001
    """t-interval of the mean log ratio over blocks (in use)."""
    found = mean_log_ratio(list(map(float, rounds.logs[:, arm] - rounds.logs[:, 0])))
    assert found is not None
    assert found.interval is not None
    return Ends(math.log(found.interval.low), math.log(found.interval.high))


def paired_bootstrap(rounds: SimulatedRounds, arm: int, generator: np.random.Generator) -> Ends:
    """Percentiles of that mean over n−1 of n blocks drawn with replacement."""
    apart = rounds.logs[:, arm] - rounds.logs[:, 0]
    return percentiles(counts_of(len(apart), generator) @ apart / (len(apart) - 1))


def unpaired_t(rounds: SimulatedRounds, arm: int, generator: np.random.Generator) -> Ends:  # noqa: ARG001
    """Welch's interval of the difference of both arms' means, as if their rounds shared no minutes."""
    own, other = rounds.logs[:, arm], rounds.logs[:, 0]
    parts = [float(logs.var(ddof=1)) / len(logs) for logs in (own, other)]
    freedom = sum(parts) ** 2 / sum(part**2 / (len(own) - 1) for part in parts)
    return ends_of(LogRatio(float(own.mean() - other.mean()), math.sqrt(sum(parts)), freedom))


def joint_fit(rounds: SimulatedRounds, arm: int, generator: np.random.Generator) -> Ends:  # noqa: ARG001
    """Least squares over all arms at once: each arm, each block, and a straight line of drift within each block."""
    blocks, arms = rounds.logs.shape
    rows = np.zeros((blocks, arms, arms - 1 + 2 * blocks))
    for index in range(blocks):
        rows[index, 1:, : arms - 1] = np.eye(arms - 1)
        rows[index, :, arms - 1 + index] = 1.0
        rows[index, :, arms - 1 + blocks + index] = rounds.places[index] - (arms - 1) / 2
    design = rows.reshape(blocks * arms, -1)
    inverse = np.linalg.pinv(design)
    fitted = inverse @ rounds.logs.ravel()
    freedom = blocks * arms - design.shape[1]
    left = float(np.sum((rounds.logs.ravel() - design @ fitted) ** 2)) / freedom
    error = math.sqrt(left * float(np.sum(inverse[arm - 1] ** 2)))
    return ends_of(LogRatio(float(fitted[arm - 1]), error, float(freedom)))


SERVING_METHODS: dict[str, Method] = {
    "paired t": paired_t,
    "paired, bootstrap": paired_bootstrap,
    "unpaired t": unpaired_t,
    "joint fit": joint_fit,
}


def cover_serving(
    scenario: ServingScenario, sessions: int, seed: int, methods: Mapping[str, Method] = SERVING_METHODS
) -> Mapping[str, Coverage]:
    """Lets every method judge the same rounds; by name, as in `methods`. `Coverage.tasks` stays empty."""
    generator = np.random.default_rng(seed)
    found = {name: Coverage() for name in methods}
    for session in range(sessions):
        rounds = draw_rounds(scenario, f"{seed}/{session}", generator)
        for name, method in methods.items():
            draft, twin = (method(rounds, arm, generator) for arm in (rounds.logs.shape[1] - 1, 1))
            found[name].add(draft, math.log(scenario.speedup), twin)
    return found


@dataclass(slots=True)
class LatencyCoverage:
    """Intervals that held the truth."""

    median: Share = field(default_factory=Share)
    p99: Share = field(default_factory=Share)


def cover_latencies(rounds: int, requests: int, sessions: int, seed: int) -> LatencyCoverage:
    """Median and 99th percentile of times whose prompts differ by 0.2, rounds by 0.03 and requests by 0.05.

    The truth is what endlessly many rounds of the same prompts would give.
    """
    generator = np.random.default_rng(seed)
    found = LatencyCoverage()
    for _ in range(sessions):
        prompts = 0.2 * generator.standard_normal(requests)
        own = 0.03 * generator.standard_normal((rounds, 1)) + 0.05 * generator.standard_normal(
            (rounds, requests)
        )
        latency = latency_of(np.exp(prompts + own).tolist())
        endless = prompts + math.hypot(0.03, 0.05) * generator.standard_normal((2_000, requests))
        true = np.exp(np.quantile(endless, [0.5, 0.99]))
        assert latency is not None
        for share, estimate, value in zip(
            (found.median, found.p99), (latency.median, latency.p99), true, strict=True
        ):
            share.add(estimate.interval is not None and estimate.interval.contains(float(value)))
    return found
