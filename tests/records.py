"""One small session with every kind of part, the same at each call."""

from __future__ import annotations

from builders import HEADER, MACHINE, build
from draftrank.measure.records import (
    BASELINE,
    CONTROL,
    Arm,
    ForwardLatency,
    Machine,
    Session,
    SessionResult,
    SessionTask,
    Trial,
)


def a_machine(**changes) -> Machine:
    values = {"machine_class": "xeon-8c", "cpu": "Xeon", "cores": 8, "threads": 8}
    return MACHINE.model_copy(update=values | changes)


def an_arm(name: str, **changes) -> Arm:
    kind = {BASELINE: "baseline", CONTROL: "control"}.get(name, "draft")
    draft = build(name, recipe={"id": name, "draft": {"kind": "ngram", "weights": [0.1, 1 / 3]}})
    latency = ForwardLatency(part="target", tokens=1, context=64, median_s=0.1 + 0.2, samples=30)
    values = {
        "id": name,
        "kind": kind,
        "num_speculative_tokens": 2 if kind == "draft" else 0,
        "draft": draft if kind == "draft" else None,
        "peak_memory_bytes": 3 * 2**32 if kind == "draft" else None,
        "latencies": (latency,),
    }
    return Arm(**(values | changes))


def a_session(
    session_id: str = "2026-03-01-aaaa", drafts: tuple[str, ...] = ("ngram-2",), **changes
) -> Session:
    values = {
        "id": session_id,
        "plan_sha256": "1" * 64,
        "created_at": f"{session_id[:10]}T10:00:00.123Z",
        "finished_at": None,
        "draftrank_version": "0.1.0",
        "target": "small-target",
        "mode": {"temperature": 0.7, "top_p": 0.9},
        "seed": 7,
        "machine": a_machine(),
        "tasks": (
            SessionTask(
                task="chat",
                task_sha256="5" * 64,
                prompts=("p1", "p2"),
                turns=(2, 1),
                prompts_sha256="6" * 64,
                max_new_tokens=16,
            ),
            SessionTask(
                task="arithmetic",
                task_sha256="7" * 64,
                prompts=("q1",),
                turns=(1,),
                prompts_sha256="8" * 64,
                max_new_tokens=16,
            ),
        ),
        "arms": tuple(an_arm(name) for name in (BASELINE, CONTROL, *drafts)),
        "warnings": ("the machine was busy",),
    }
    return Session(**(HEADER | values | changes))


def a_trial(arm: str = "ngram-2", task: str = "chat", prompt: str = "p1", **changes) -> Trial:
    """A draft's trial of 3 steps that emit 6 tokens, or the same output token by token."""
    draft = arm not in (BASELINE, CONTROL)
    values = {
        "arm": arm,
        "task": task,
        "prompt": prompt,
        "turn": 0,
        "repeat": 0,
        "position": 0,
        "process": 0,
        "started_at": "2026-03-01T10:00:01Z",
        "prompt_tokens": 33,
        "token_ids": (5, 49151, 2, 2, 17, 0, 1),
        "finish": "length",
        "steps": 3 if draft else 6,
        "accept_histogram": (1, 1, 1) if draft else (6,),
        "offered": (3, 1) if draft else (),
        "proposed": 5 if draft else 0,
        "draft_forwards": 0,
        "prefill_s": 0.1,
        "decode_s": 1 / 3,
        "propose_s": 5e-324,
        "verify_s": 0.30000000000000004,
    }
    return Trial(**(values | changes))


def a_result(
    session_id: str = "2026-03-01-aaaa", drafts: tuple[str, ...] = ("ngram-2",), **changes
) -> SessionResult:
    """A session in which every arm decoded every prompt turn, twice, one arm a second."""
    measured = a_session(session_id, drafts, **changes)
    cells = [
        (task.task, prompt, turn, repeat)
        for task in measured.tasks
        for prompt, turns in zip(task.prompts, task.turns, strict=True)
        for turn in range(turns)
        for repeat in range(measured.repeats)
    ]
    return SessionResult(
        session=measured,
        trials=tuple(
            a_trial(
                arm.id, task, prompt, turn=turn, repeat=repeat, position=position,
                started_at=f"2026-03-01T10:{block:02}:{1 + position:02}Z",
            )
            for block, (task, prompt, turn, repeat) in enumerate(cells)
            for position, arm in enumerate(measured.arms)
        ),
    )  # fmt: skip
