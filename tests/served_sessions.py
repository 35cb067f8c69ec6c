"""A small serving session with every kind of part, the same at each call."""

from __future__ import annotations

from draftrank.catalog.server import Server
from draftrank.measure.evidence import Conditions
from draftrank.measure.records import BASELINE, CONTROL, SessionTask
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
from records import a_machine, an_arm
from servings import HEADER as SERVED_HEADER

SERVER = Server.model_validate(
    {
        "schema_version": 1,
        "id": "small-vllm",
        "title": "Small",
        "engine": "vllm",
        "dtype": "bf16",
        "context": 64,
    }
)
OUTPUT = (3, 1, 4, 1, 5, 9)


def a_turn(**changes) -> PromptTurn:
    values = {
        "task": "code",
        "prompt": "p0",
        "turn": 0,
        "prompt_tokens": 7,
        "max_new_tokens": 6,
        "token_ids": OUTPUT,
    }
    return PromptTurn(**(values | changes))


def a_request(turn: int = 0, **changes) -> ServedRequest:
    values = {
        "turn": turn,
        "sent_us": 1000,
        "arrivals_us": (50_000, 20_000, 30_000),
        "arrival_tokens": (1, 2, 3),
        "end": "length",
    }
    return ServedRequest(**(values | changes))


def parted_request(turn: int = 0) -> ServedRequest:
    return a_request(
        turn,
        token_ids=(3, 1, 4, 7, 5, 9),
        accepted=3,
        proposed=6,
        divergence=ServedDivergence(index=3, gap=0.01, plain_gap=0.0),
    )


def failed_request(turn: int = 0) -> ServedRequest:
    return ServedRequest(turn=turn, sent_us=5, end="failed", failure="nothing came for 9 s")


def a_round(arm: str = BASELINE, concurrency: int = 1, index: int = 0, **changes) -> Round:
    values = {
        "arm": arm,
        "concurrency": concurrency,
        "index": index,
        "position": 0,
        "process": 0,
        "started_at": "2026-11-30T10:05:00.123Z",
        "wall_s": 0.25,
        "requests": (a_request(), a_request(1)),
        "client_cpu": 0.05,
        "server_cpu": 1.5,
        "server_started": 1,
        "memory_bytes": 1 << 30,
        "conditions": Conditions(others_cpus=0.02),
    }
    return Round(**(values | changes))


def a_serving_session(drafts: tuple[str, ...] = ("ngram",), **changes) -> ServingSession:
    build = an_arm("shallow").draft
    arms = [ServingArm(id=BASELINE, kind="baseline"), ServingArm(id=CONTROL, kind="control", start_s=20.5)]
    arms += [
        ServingArm(
            id=draft,
            kind="draft",
            draft_id=draft,
            draft=build,
            num_speculative_tokens=4,
            speculation={"method": "ngram", "num_speculative_tokens": 4},
            form="settings",
            differs=("vLLM copies from the earliest match.",),
            flags=("--dtype", "bfloat16"),
            start_s=21.0,
        )
        for draft in drafts
    ]
    values = {
        "id": "2026-11-30-0123456789ab",
        "created_at": "2026-11-30T10:00:00.123Z",
        "finished_at": "2026-11-30T11:00:00.123Z",
        "draftrank_version": "0.3.0",
        "target": "small-target",
        "server": SERVER.id,
        "server_declared": SERVER.model_dump(mode="json", exclude_defaults=True),
        "server_sha256": SERVER.content_sha256(),
        "machine": a_machine(),
        "tasks": (
            SessionTask(
                task="code",
                task_sha256="6" * 64,
                prompts=("p0", "p1"),
                turns=(1, 1),
                prompts_sha256="7" * 64,
                max_new_tokens=6,
            ),
        ),
        "turns": (a_turn(), a_turn(prompt="p1")),
        "concurrencies": (1, 4),
        "rounds": 2,
        "arms": tuple(arms),
        "warnings": ("the machine was busy",),
    }
    return ServingSession(**(SERVED_HEADER | values | changes))


def a_serving_result(**changes) -> ServingResult:
    """Two blocks of every concurrency; the draft parts once and fails once."""
    session = a_serving_session(**changes)
    rounds = [
        a_round(arm.id, concurrency, index, position=place)
        for concurrency in session.concurrencies
        for index in range(session.rounds)
        for place, arm in enumerate(session.arms)
    ]
    rounds[-1] = rounds[-1].model_copy(
        update={
            "requests": (parted_request(), failed_request(1)),
            "counters": Counters(drafts=3, proposed=6, accepted=3),
        }
    )
    return ServingResult(session=session, rounds=tuple(rounds))
