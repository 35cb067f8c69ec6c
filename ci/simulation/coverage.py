"""How often intervals, stopping and ranks are right, over many simulated sessions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from draftrank.measure.gates.verdict import differs, spreads
from draftrank.measure.records import BASELINE, CONTROL
from draftrank.measure.statistics.estimates import Interval
from draftrank.measure.statistics.log_ratio import LogRatio, jackknife, mean_of, spread_of_prompts
from draftrank.measure.statistics.ranking_evidence import stand_by
from draftrank.measure.statistics.step_cost import MACHINE_SPREAD, between_machines
from draftrank.measure.statistics.stopping import ArmWidth, narrow_enough
from simulation.interval_methods import METHODS, Ends, Method
from simulation.sessions import Scenario, SimulatedSession, draw_session, truth


@dataclass(slots=True)
class Share:
    """How often something was so."""

    hits: float = 0
    of: int = 0

    def add(self, hit: float) -> None:
        """Counts one more case; `hit` between 0 and 1."""
        self.hits += hit
        self.of += 1

    @property
    def value(self) -> float:
        """Hits ÷ cases; NaN without any."""
        return self.hits / self.of if self.of else math.nan


@dataclass(slots=True)
class Coverage:
    """What became of one method in one scenario."""

    overall: Share = field(default_factory=Share)
    """Intervals of the draft's overall speedup that held the truth."""
    tasks: Share = field(default_factory=Share)
    """The same of its speedups in single tasks."""
    called_different: Share = field(default_factory=Share)
    """A/A intervals that missed 1."""
    unstable: Share = field(default_factory=Share)
    """A/A intervals that ended further from 1 than the gate tolerates."""
    noisy: Share = field(default_factory=Share)
    """A/A intervals wider than the gate allows."""
    half_widths: list[float] = field(default_factory=list)
    """Of the draft's intervals, on the logarithmic scale."""
    noise_half_widths: list[float] = field(default_factory=list)
    """Of the A/A intervals."""

    def add(self, draft: Ends, true: float, control: Ends) -> None:
        """Counts a session: the intervals of the draft's log speedup and of A/A."""
        self.overall.add(holds(draft, true))
        self.called_different.add(not holds(control, 0.0))
        noise = Interval(*map(math.exp, control))
        self.unstable.add(differs(noise))
        self.noisy.add(spreads(noise))
        self.half_widths.append((draft.high - draft.low) / 2)
        self.noise_half_widths.append((control.high - control.low) / 2)


def cover_methods(
    scenario: Scenario, sessions: int, seed: int, methods: Mapping[str, Method] = METHODS
) -> Mapping[str, Coverage]:
    """Lets every method judge the same sessions; by name, as in `methods`."""
    generator = np.random.default_rng(seed)
    found = {name: Coverage() for name in methods}
    true = truth(scenario, BASELINE, "d0")
    for _ in range(sessions):
        session = draw_session(scenario, generator)
        draft, control = (list(session.sums(BASELINE, arm).values()) for arm in ("d0", CONTROL))
        for name, method in methods.items():
            of_draft, of_control = method(draft, generator), method(control, generator)
            found[name].add(of_draft.overall, _mean(true), of_control.overall)
            found[name].tasks.add(float(np.mean([*map(holds, of_draft.tasks, true.values())])))
    return found


@dataclass(slots=True)
class Stopped:
    """What became of sessions that stopped by themselves."""

    drafts: Share = field(default_factory=Share)
    """Intervals of drafts that held the truth."""
    called_different: Share = field(default_factory=Share)
    """A/A intervals that missed 1."""
    reasons: Counter[str] = field(default_factory=Counter)
    repeats: list[int] = field(default_factory=list)


def cover_stopping(scenario: Scenario, target_ci: float, required: int, sessions: int, seed: int) -> Stopped:
    """Sessions that repeat from `required` times until every interval is as narrow as `target_ci`; `scenario.repeats` stand
    for the budget."""
    generator = np.random.default_rng(seed)
    found = Stopped()
    others = [arm for arm in scenario.arms if arm != BASELINE]
    true = {arm: _mean(truth(scenario, BASELINE, arm)) for arm in others}
    for _ in range(sessions):
        session = draw_session(scenario, generator)
        reason, repeats = None, required
        while True:
            ratios = {arm: speedup_after(session, BASELINE, arm, repeats) for arm in others}
            reason = narrow_enough(
                [ArmWidth(ratios[arm], _spread(session, arm, repeats)) for arm in others], target_ci
            )
            if reason is not None or repeats == scenario.repeats:
                break
            repeats += 1
        found.reasons[reason or "budget"] += 1
        found.repeats.append(repeats)
        for arm, ratio in ratios.items():
            held = abs(ratio.value - true[arm]) <= ratio.reach()
            if arm == CONTROL:
                found.called_different.add(not held)
            else:
                found.drafts.add(held)
    return found


@dataclass(slots=True)
class Ranked:
    """What became of rankings."""

    ranges: Share = field(default_factory=Share)
    """Rank ranges that held the draft's true rank."""
    all_right: Share = field(default_factory=Share)
    """Sessions in which all ranges did."""
    widths: list[int] = field(default_factory=list)
    """Ranks in each range."""


def cover_ranks(scenario: Scenario, sessions: int, seed: int) -> Ranked:
    """Ranks the scenario's drafts in each session; drafts of equal truth may take any of their ranks."""
    generator = np.random.default_rng(seed)
    drafts = [arm for arm in scenario.arms if arm.startswith("d")]
    true = {arm: _mean(truth(scenario, BASELINE, arm)) for arm in drafts}
    found = Ranked()
    for _ in range(sessions):
        session = draw_session(scenario, generator)
        speeds = {arm: math.exp(speedup_after(session, BASELINE, arm).value) for arm in drafts}
        standings = stand_by(speeds, partial(_faster, session))
        right = True
        for arm in drafts:
            best = 1 + sum(other > true[arm] for other in true.values())
            worst = sum(other >= true[arm] for other in true.values())
            low, high = standings[arm].rank
            held = low <= best and high >= worst
            right &= held
            found.ranges.add(held)
            found.widths.append(high - low + 1)
        found.all_right.add(right)
    return found


def cover_verifying(
    scenario: Scenario, cut: float, sessions: int, seed: int, machines: float = MACHINE_SPREAD
) -> Share:
    """How often a re-run on another machine of the class contradicts the published cost of a step.

    Args:
        scenario: its first repeat stands for the published session, its second for the re-run.
        cut: share of the draft's published seconds that were left out; 0: honest.
        sessions: how many.
        seed: equal seeds give equal shares.
        machines: by how much machines of the class really differ.
    """
    generator = np.random.default_rng(seed)
    arms = scenario.arms
    found = Share()
    for _ in range(sessions):
        times = np.log(draw_session(scenario, generator).seconds[:, :2])
        baseline = (times[..., arms.index(BASELINE)] + times[..., arms.index(CONTROL)]) / 2
        published, here = (times[..., arms.index("d0")] - baseline).T
        machine = machines * generator.standard_normal()
        logs = here - published + machine - math.log1p(-cut)
        found.add(between_machines(logs.tolist()).ends()[0] > 1.0)
    return found


def _faster(session: SimulatedSession, one: str, other: str) -> LogRatio:
    return speedup_after(session, other, one)


def speedup_after(session: SimulatedSession, first: str, second: str, repeats: int | None = None) -> LogRatio:
    """What `compare_speed` would say of two arms after so many repeats."""
    tasks = [jackknife(sums) for sums in session.sums(first, second, repeats).values()]
    return mean_of([task for task in tasks if task is not None])


def _spread(session: SimulatedSession, arm: str, repeats: int) -> LogRatio | None:
    return spread_of_prompts(session.logs(BASELINE, arm, repeats)) if repeats > 1 else None


def holds(ends: Ends, value: float) -> bool:
    """Whether an interval contains a value."""
    return ends.low <= value <= ends.high


def _mean(tasks: Mapping[str, float]) -> float:
    return math.fsum(tasks.values()) / len(tasks)
