"""Small sessions with known figures, for the tests of statistics, gates, boards and site."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.measure.records import (
    BASELINE,
    CONTROL,
    Arm,
    DraftBuild,
    ForwardLatency,
    Machine,
    Session,
    SessionResult,
    SessionTask,
    Trial,
)
from draftrank.version import __version__

GREEDY = DecodingMode()
Rate = Callable[[str, str, int], float]
"""Seconds per decoded token of (task, prompt, repeat)."""


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def trial(arm: str, **changes: Any) -> Trial:
    """One trial; give `histogram` for drafts, `tokens` for autoregressive arms."""
    histogram = changes.pop("histogram", None)
    tokens = changes.pop("tokens", 9)
    seconds = changes.pop("decode_s", 1.0)
    if histogram is None:
        histogram = (tokens - 1,)
    steps = sum(histogram)
    emitted = 1 + steps + sum(count * number for count, number in enumerate(histogram))
    offered = tuple(sum(histogram[position:]) for position in range(len(histogram) - 1))
    values: dict[str, Any] = {
        "task": "chat",
        "prompt": "p0",
        "turn": 0,
        "repeat": 0,
        "position": 0,
        "process": 0,
        "started_at": "2026-11-01T10:00:00Z",
        "prompt_tokens": 12,
        "token_ids": tuple(range(100, 100 + emitted)),
        "finish": "length",
        "steps": steps,
        "accept_histogram": tuple(histogram),
        "offered": offered,
        "proposed": steps * (len(histogram) - 1),
        "draft_forwards": steps * (len(histogram) - 1),
        "prefill_s": 0.05,
        "decode_s": seconds,
        "propose_s": 0.25 * seconds if len(histogram) > 1 else 0.0,
        "verify_s": 0.5 * seconds,
    }
    return Trial(arm=arm, **(values | changes))


def build(draft: str, **changes: Any) -> DraftBuild:
    recipe = {
        "schema_version": 1,
        "id": draft,
        "target": "tiny-target",
        "title": f"The draft {draft}",
        "authors": [{"name": "A. Person", "github": None}],
        "draft": {"kind": "ngram", "max_ngram": 3, "min_ngram": 1},
        "speculate": {"num_speculative_tokens": 3},
    }
    values: dict[str, Any] = {
        "recipe": recipe,
        "recipe_sha256": sha(f"recipe {draft}"),
        "weights_sha256": None,
        "techniques": ("n-gram",),
        "trained": False,
        "parameters": 0,
        "bytes_on_disk": 0,
        "build_s": 0.0,
    }
    return DraftBuild(**(values | changes))


def arm_of(name: str, /, k: int = 3, **changes: Any) -> Arm:
    values: dict[str, Any] = {
        "draft": build(name),
        "peak_memory_bytes": 512_000_000,
        "latencies": (
            ForwardLatency(part="target", tokens=1, context=64, median_s=0.1, samples=9),
            ForwardLatency(part="draft", tokens=1, context=64, median_s=0.01, samples=9),
        ),
    }
    return Arm(id=name, kind="draft", num_speculative_tokens=k, **(values | changes))


MACHINE = Machine(
    machine_class="cpu-2core",
    cpu="Example CPU",
    cores=2,
    threads=2,
    memory_bytes=8_000_000_000,
    gpu=None,
    platform="Linux x86_64",
    python="3.11.7",
    packages={"torch": "2.13.0"},
)


HEADER: dict[str, Any] = {
    "plan_sha256": sha("plan"),
    "suite": "quick",
    "suite_sha256": sha("suite"),
    "draftrank_version": __version__,
    "target": "tiny-target",
    "target_sha256": sha("target"),
    "target_weights_sha256": sha("weights"),
    "target_parameters": 1_000_000,
    "dtype": "fp32",
    "device": "cpu",
    "backend": "transformers",
    "mode": GREEDY,
    "seed": 0,
    "repeats": 2,
    "machine": MACHINE,
}


def session(arms: Sequence[Arm], tasks: Mapping[str, int], *, repeats: int = 2, **changes: Any) -> Session:
    """A session of the given arms; `tasks` maps a task to its number of one-turn prompts."""
    values: dict[str, Any] = {
        "id": "20261101-a",
        "created_at": "2026-11-01T10:00:00Z",
        "finished_at": "2026-11-01T11:00:00Z",
        "repeats": repeats,
        "tasks": tuple(
            SessionTask(
                task=task,
                task_sha256=sha(task),
                prompts=tuple(f"p{index}" for index in range(count)),
                turns=(1,) * count,
                prompts_sha256=sha(f"prompts {task}"),
                max_new_tokens=9,
            )
            for task, count in tasks.items()
        ),
        "arms": (
            Arm(id=BASELINE, kind="baseline", num_speculative_tokens=0),
            Arm(id=CONTROL, kind="control", num_speculative_tokens=0),
            *arms,
        ),
    }
    return Session(**(HEADER | values | changes))


def wobble(*parts: object) -> float:
    """A fixed number between 0.98 and 1.02 for these parts: noise that never changes."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return 0.98 + 0.04 * digest[0] / 255


def one_after_another(trials: Sequence[Trial]) -> list[Trial]:
    """The trials with the times at which one process began them, and their places in their blocks."""
    now, done, places = datetime(2026, 11, 1, 10, tzinfo=UTC), [], Counter[object]()
    for found in trials:
        started_at = now.isoformat(timespec="milliseconds")
        done.append(found.model_copy(update={"started_at": started_at, "position": places[found.cell]}))
        places[found.cell] += 1
        now += timedelta(seconds=found.prefill_s + found.decode_s + 0.01)
    return done


def slowed(found: SessionResult, factor: Callable[[Trial], float]) -> SessionResult:
    """The session with decoding that takes `factor` times as long, trial by trial."""

    def slower(one: Trial) -> Trial:
        times = factor(one)
        return one.model_copy(
            update={name: getattr(one, name) * times for name in ("decode_s", "propose_s", "verify_s")}
        )

    return found.model_copy(update={"trials": tuple(one_after_another([*map(slower, found.trials)]))})


def draft_first(found: SessionResult) -> SessionResult:
    """The session with its drafts before the baseline in every block."""
    order = sorted(found.trials, key=lambda one: (one.cell, one.arm in (BASELINE, CONTROL)))
    return found.model_copy(update={"trials": tuple(one_after_another(order))})


def result(
    speedups: Mapping[str, float],
    *,
    arms: Sequence[Arm] | None = None,
    tasks: Mapping[str, int] | None = None,
    repeats: int = 2,
    histogram: tuple[int, ...] = (0, 0, 0, 2),
    control: float = 1.0,
    drop: Callable[[Trial], bool] = lambda _: False,
    change: Callable[[Trial], Trial] = lambda found: found,
    gain: Callable[[str, str], float] = lambda _name, _task: 1.0,
    **changes: Any,
) -> SessionResult:
    """A session whose drafts are about `speedups` times as fast as a baseline of 0.1 s per token.

    `drop` leaves trials out, `change` replaces them, and `gain` makes an arm faster in a task.
    """
    tasks = tasks or {"chat": 4, "math": 4}
    arms = [arm_of(draft) for draft in speedups] if arms is None else arms
    factors = {BASELINE: 1.0, CONTROL: control, **speedups}
    trials = [
        trial(
            name,
            task=task,
            prompt=f"p{index}",
            repeat=repeat,
            histogram=histogram if name in speedups else None,
            tokens=1 + sum((count + 1) * steps for count, steps in enumerate(histogram)),
            decode_s=0.8 / factor / gain(name, task) * wobble(name, task, index, repeat),
        )
        for task, count in tasks.items()
        for index in range(count)
        for repeat in range(repeats)
        for name, factor in factors.items()
    ]
    kept = tuple(change(found) for found in one_after_another(trials) if not drop(found))
    return SessionResult(session=session(arms, tasks, repeats=repeats, **changes), trials=kept)
