"""Sessions drawn from a known truth, to see how often an interval holds it.

The model, on the logarithmic scale, of the seconds per token of arm a on prompt p in repeat r:

    pace of the task + pace of the prompt − log speedup of (a, p)
    + drift at that moment + lasting noise at that moment + noise of the trial [+ an outlier]

- *Prompts* are what the world offers. Each has a length (lognormal), a pace that all arms share, and an
  own speedup for each draft, normal around the task's (or exponential: `skewed`), correlated between
  drafts and, if asked, with the length.
- *Drift* is a straight line plus a slow wave over the session, of random phase. Trials follow one
  another in the order of the real `schedule`, so arms of a block share nearly all of it.
- *Lasting noise* is an autoregressive series over the trials (AR(1)): a disturbance lingers.
- *Outliers*: now and then a trial takes several times as long, whatever its arm.

The truth of a task is the speedup that endlessly many prompts would give, E[baseline seconds] ÷
E[draft seconds], known in closed form; noise and outliers hit numerator and denominator alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from draftrank.measure.records import BASELINE, CONTROL, SessionTask
from draftrank.measure.sessions.schedule import schedule
from draftrank.measure.statistics.log_ratio import Floats, PromptSums


@dataclass(frozen=True, slots=True)
class Scenario:
    """How a simulated session comes about. Spreads are standard deviations of logarithms."""

    prompts: tuple[int, ...]
    """Prompts of each task."""
    repeats: int = 1
    drafts: tuple[float, ...] = (1.3,)
    """Each draft's median speedup."""
    prompt_spread: float = 0.15
    """Of a draft's speedup between the prompts of a task."""
    task_spread: float = 0.25
    """How much tasks differ in speedup, and by what factor in their prompts' spread."""
    skewed: bool = False
    """Whether few prompts gain much (shifted exponential) instead of a normal spread."""
    alike: float = 0.5
    """Correlation of two drafts' speedups over prompts."""
    length_spread: float = 0.3
    """Of token counts between prompts."""
    length_gain: float = 0.0
    """Correlation of a prompt's length with its speedup; 0 where `skewed`."""
    noise: float = 0.02
    """Of a single trial."""
    lasting_noise: float = 0.02
    """Of the autoregressive series."""
    lasting: float = 0.8
    """Correlation of that series from one trial to the next."""
    drift: float = 0.2
    """From the session's begin to its end; random in direction, with a wave a third as high."""
    outliers: float = 0.0
    """Share of trials that are outliers."""
    outlier_factor: float = 3.0
    """How many times as long these take, on average."""

    @property
    def arms(self) -> tuple[str, ...]:
        """Ids of the arms: the baseline, its control, and the drafts d0, d1, …"""
        return (BASELINE, CONTROL, *(f"d{index}" for index in range(len(self.drafts))))


@dataclass(frozen=True, slots=True)
class SimulatedSession:
    """What one session saw."""

    scenario: Scenario
    tokens: Floats
    """Decoded tokens by prompt (all tasks one after another); equal for all arms, as in greedy decoding."""
    seconds: Floats
    """Decode seconds by prompt, repeat and arm."""

    def sums(self, first: str, second: str, repeats: int | None = None) -> dict[str, PromptSums]:
        """What the statistics see of two arms after so many repeats: task → rows of prompts."""
        arms = self.scenario.arms
        mean = self.seconds[:, :repeats].mean(axis=1)
        rows = np.column_stack(
            [mean[:, arms.index(first)], self.tokens, mean[:, arms.index(second)], self.tokens]
        )
        parts = np.split(rows, np.cumsum(self.scenario.prompts)[:-1])
        return {f"t{index}": part for index, part in enumerate(parts)}

    def logs(self, first: str, second: str, repeats: int) -> list[list[list[float]]]:
        """Log ratios of two arms by task, prompt and repeat."""
        arms = self.scenario.arms
        times = np.log(self.seconds[:, :repeats])
        apart = times[:, :, arms.index(first)] - times[:, :, arms.index(second)]
        parts = np.split(apart, np.cumsum(self.scenario.prompts)[:-1])
        return [[list(map(float, row)) for row in part] for part in parts]


def truth(scenario: Scenario, first: str, second: str) -> Mapping[str, float]:
    """Logarithm of the true speedup of the second arm over the first, by task."""
    found = {}
    for task in range(len(scenario.prompts)):
        own, other = (_true_log_speedup(scenario, task, arm) for arm in (second, first))
        found[f"t{task}"] = own - other
    return found


def draw_session(scenario: Scenario, generator: np.random.Generator) -> SimulatedSession:
    """One session of the scenario; equal generators give equal sessions."""
    task = np.repeat(np.arange(len(scenario.prompts)), scenario.prompts)
    arms = len(scenario.arms)
    common, length = generator.standard_normal((2, len(task)))
    tokens = np.maximum(np.round(60 * np.exp(scenario.length_spread * length)), 2.0)
    pace = math.log(0.03) + 0.05 * task + 0.1 * generator.standard_normal(len(task))
    gain = np.zeros((len(task), arms))
    for index in range(len(scenario.drafts)):
        own = generator.standard_normal(len(task))
        standing = _standard(scenario, common, own, length)
        centre, spread = _task_law(scenario, index)
        gain[:, 2 + index] = centre[task] + spread[task] * standing
    places = _places(scenario.prompts, scenario.repeats, len(scenario.drafts))
    moment = moments(
        places.size,
        generator,
        drift=scenario.drift,
        lasting=scenario.lasting,
        lasting_noise=scenario.lasting_noise,
    )[places]
    noise = scenario.noise * generator.standard_normal(places.shape)
    log_seconds = (np.log(tokens) + pace)[:, None, None] - gain[:, None, :] + moment + noise
    if scenario.outliers:
        hit = generator.random(places.shape) < scenario.outliers
        extra = generator.exponential(scenario.outlier_factor - 1, places.shape)
        log_seconds += np.where(hit, np.log1p(extra), 0.0)
    return SimulatedSession(scenario, tokens, np.exp(log_seconds))


def _standard(scenario: Scenario, common: Floats, own: Floats, length: Floats) -> Floats:
    """A draft's standardised log speedup on each prompt, as correlated as the scenario says."""
    mixed = math.sqrt(scenario.alike) * common + math.sqrt(1 - scenario.alike) * own
    if scenario.skewed:
        # A normal variable's probability turns it into an exponential one of mean and deviation 1.
        upper = 0.5 * np.array([math.erfc(value / math.sqrt(2)) for value in mixed])
        return -np.log(upper) - 1.0
    return scenario.length_gain * length + math.sqrt(1 - scenario.length_gain**2) * mixed


def _task_law(scenario: Scenario, draft: int) -> tuple[Floats, Floats]:
    """Centre and spread of a draft's log speedup in each task; tasks differ in a fixed pattern."""
    place = np.linspace(-1.0, 1.0, len(scenario.prompts)) if len(scenario.prompts) > 1 else np.zeros(1)
    centre = math.log(scenario.drafts[draft]) + scenario.task_spread * place
    return centre, scenario.prompt_spread * np.exp(2 * scenario.task_spread * place)


def _true_log_speedup(scenario: Scenario, task: int, arm: str) -> float:
    if arm in (BASELINE, CONTROL):
        return 0.0
    centre, spread = (float(of[task]) for of in _task_law(scenario, scenario.arms.index(arm) - 2))
    if scenario.skewed:  # 1 / E[exp(−spread (E−1))] for a standard exponential E
        return centre - spread + math.log1p(spread)
    # E[n] / E[n / S] for jointly normal log n and log S
    return centre - spread**2 / 2 + scenario.length_gain * scenario.length_spread * spread


def moments(
    trials: int, generator: np.random.Generator, *, drift: float, lasting: float, lasting_noise: float
) -> Floats:
    """Drift and lasting noise at each trial of the session, in their order; see `Scenario`."""
    time = np.linspace(-0.5, 0.5, trials)
    wave = np.sin(2 * math.pi * (generator.uniform(0.5, 3.0) * time + generator.random()))
    slope = drift * (generator.uniform(-1, 1) * time + wave / 3)
    shocks = generator.standard_normal(trials)
    shocks[1:] *= math.sqrt(1 - lasting**2)
    series = np.empty(trials)
    last = 0.0
    for index, shock in enumerate(shocks.tolist()):
        last = lasting * last + shock
        series[index] = last
    result: Floats = slope + lasting_noise * series
    return result


@lru_cache(maxsize=64)
def _places(prompts: tuple[int, ...], repeats: int, drafts: int) -> NDArray[np.int64]:
    """For each prompt, repeat and arm the number of its trial in the session."""
    arms = Scenario(prompts, drafts=(1.0,) * drafts).arms
    tasks = [
        SessionTask(
            task=f"t{index}",
            task_sha256="0" * 64,
            prompts=tuple(map(str, range(count))),
            turns=(1,) * count,
            prompts_sha256="0" * 64,
            max_new_tokens=1,
        )
        for index, count in enumerate(prompts)
    ]
    begins = np.concatenate([[0], np.cumsum(prompts)])
    places = np.empty((sum(prompts), repeats, len(arms)), dtype=np.int64)
    trial = 0
    for repeat in range(repeats):
        for block in schedule(tasks, arms, repeat, seed=0):
            for arm in block.arms:
                places[begins[block.task] + block.prompt, repeat, arms.index(arm)] = trial
                trial += 1
    return places
