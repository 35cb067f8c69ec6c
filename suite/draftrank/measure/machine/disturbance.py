"""When the machine was too busy, or too slow, for a stretch of trials to count.

A stretch is what is compared with itself: the trials of one prompt turn, decoded back to back by all
arms. Each rule looks at the conditions of one stretch and returns the values of its reason when it is
broken. The methodology page lists the rules from `RULES`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from draftrank.measure.evidence import Conditions

OTHERS_CPUS = 0.25
"""Processors used by other processes. One thread that lags by a quarter delays all others, because they wait
for each other after every operation. Housekeeping of a quiet machine stays below 0.05."""
OTHERS_SHARE = 0.02
"""The same as a share of all processors: the limit for the housekeeping of a large machine."""
STEAL = 0.05
"""Share of processor time. Quiet guests lose 1 to 3 % to their host all the time; more comes in bursts that
affect single arms."""
MEMORY_STALLED = 0.05
"""Share of time in which a process waited for memory: it is swapped or compacted, weights included."""
QUOTA_THROTTLED = 0.02
"""Share of time in which the quota stopped the process. The scheduler stops it for up to 100 ms, as long as
several decoding steps, so even few stops affect single arms."""
CLOCK_CHANGE = 0.15
"""Largest fall of the clock within a stretch. Normal boost changes it by less than a tenth."""

Values = dict[str, str]
Stretch = Sequence[Conditions]
Kind = Literal["disturbed", "throttled"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One way in which a stretch fails to count."""

    id: str
    """Short name."""
    kind: Kind
    """Whether others took the machine's time, or the machine itself was slowed down."""
    reason: str
    """What a reader is told, with `{named}` values."""
    fix: str
    """What to do about it."""
    check: Callable[[Stretch, int], Values | None]
    """The values of the reason for a stretch on so many processors; None when nothing is wrong."""

    @property
    def meaning(self) -> str:
        """What the rule is for, in one paragraph."""
        return " ".join((inspect.getdoc(self.check) or "").split())


@dataclass(frozen=True, slots=True)
class Disturbance:
    """A rule that a stretch broke."""

    rule: Rule
    reason: str
    """In words."""


def disturbances(stretch: Iterable[Conditions | None], cores: int) -> list[Disturbance]:
    """Every rule that a stretch of trials on so many processors breaks; empty when it was calm, or not watched."""
    watched = [conditions for conditions in stretch if conditions is not None]
    found = ((rule, rule.check(watched, cores)) for rule in RULES)
    return [Disturbance(rule, rule.reason.format(**values)) for rule, values in found if values is not None]


def disturbance_of(stretch: Iterable[Conditions | None], cores: int) -> Disturbance | None:
    """The weightiest of `disturbances`; None when the stretch was calm, or not watched."""
    return next(iter(disturbances(stretch, cores)), None)


def _others(stretch: Stretch, cores: int) -> Values | None:
    """Other processes must leave this one its processors. The time of this process, all its threads included,
    is subtracted from the busy time of the processors it may use; the time of its child processes is not."""
    most = max((entry.others_cpus or 0.0 for entry in stretch), default=0.0)
    if most <= max(OTHERS_CPUS, OTHERS_SHARE * cores):
        return None
    return {"processors": f"{most:.1f}", "cores": str(cores)}


def _steal(stretch: Stretch, cores: int) -> Values | None:  # noqa: ARG001
    """The host of a virtual machine must give it the processors that it shows."""
    return _above(STEAL, [entry.steal for entry in stretch])


def _memory(stretch: Stretch, cores: int) -> Values | None:  # noqa: ARG001
    """No process on the machine should have to wait for memory (the kernel's pressure figure `some`)."""
    return _above(MEMORY_STALLED, [entry.memory_stalled for entry in stretch])


def _gpu_shared(stretch: Stretch, cores: int) -> Values | None:  # noqa: ARG001
    """No other process may compute on the GPU, because it would share its time."""
    most = max((entry.gpu_others or 0 for entry in stretch), default=0)
    return {"count": str(most)} if most else None


def _quota(stretch: Stretch, cores: int) -> Values | None:  # noqa: ARG001
    """A container's processor quota must suffice for the computing threads."""
    return _above(QUOTA_THROTTLED, [entry.quota_throttled for entry in stretch])


def _gpu_clock(stretch: Stretch, cores: int) -> Values | None:  # noqa: ARG001
    """The driver must not lower the GPU's clock because of heat or a failing power supply. The power limit is
    no such reason: it belongs to the machine and is part of its fingerprint."""
    held = {reason for entry in stretch for reason in entry.gpu_throttled_by} - {"power limit"}
    return {"reasons": ", ".join(sorted(held))} if held else None


def _clock(stretch: Stretch, cores: int) -> Values | None:  # noqa: ARG001
    """All arms of a stretch must run at about the same clock of the processor, and of the GPU. Virtual machines do not
    show their processor's clock."""
    for clocks in (
        [entry.frequency_hz for entry in stretch if entry.frequency_hz],
        [entry.gpu_clock_hz for entry in stretch if entry.gpu_clock_hz],
    ):
        if clocks and min(clocks) < (1 - CLOCK_CHANGE) * max(clocks):
            return {"high": f"{max(clocks) / 1e9:.2f}", "low": f"{min(clocks) / 1e9:.2f}"}
    return None


def _above(limit: float, shares: Sequence[float | None]) -> Values | None:
    most = max((share or 0.0 for share in shares), default=0.0)
    return {"share": f"{most:.0%}"} if most > limit else None


RULES: tuple[Rule, ...] = (
    Rule(
        "others",
        "disturbed",
        "other processes kept {processors} of {cores} processors busy",
        "stop other work while you measure: two torch processes slow each other many times over",
        _others,
    ),
    Rule(
        "gpu-shared",
        "disturbed",
        "{count} other processes computed on the GPU",
        "stop them (`nvidia-smi` lists them), or take another GPU with CUDA_VISIBLE_DEVICES",
        _gpu_shared,
    ),
    Rule(
        "steal",
        "disturbed",
        "the hypervisor gave {share} of the processors' time to others",
        "measure on a machine with processors of its own, or at a quieter time",
        _steal,
    ),
    Rule(
        "memory",
        "disturbed",
        "processes waited for memory {share} of the time",
        "close other programs, or measure a smaller target",
        _memory,
    ),
    Rule(
        "quota",
        "throttled",
        "the container's processor quota stopped its processes {share} of the time",
        "raise the container's processor limit, or set OMP_NUM_THREADS below it",
        _quota,
    ),
    Rule(
        "gpu-clock",
        "throttled",
        "the driver held the GPU's clock down ({reasons})",
        "let the GPU cool and check its cooling and its power supply",
        _gpu_clock,
    ),
    Rule(
        "clock",
        "throttled",
        "the clock fell from {high} to {low} GHz between arms",
        "cool the machine, plug it in, and set the governor to performance",
        _clock,
    ),
)
