"""Small parity records, the same at each call."""

from __future__ import annotations

from draftrank.measure.evidence import Divergence
from draftrank.measure.parity import Output, Parity, ParityTurn
from draftrank.measure.records import SessionTask
from records import a_machine, an_arm


def a_turn(task="code", prompt="p0", tokens=11, here=5, there=5, **changes) -> ParityTurn:
    """A prompt of that many tokens behind the first, and the steps that each engine took with the draft."""
    plain = Output(token_ids=tuple(range(tokens + 1)), steps=tokens, decode_s=tokens * 0.1)
    values = {
        "task": task,
        "prompt": prompt,
        "turn": 0,
        "prompt_tokens": 7,
        "plain_here": plain,
        "draft_here": Output(steps=here, proposed=3 * here, decode_s=here * 0.2),
        "plain_there": Output(steps=tokens, decode_s=tokens * 0.05),
        "draft_there": Output(steps=there, proposed=3 * there, decode_s=there * 0.1),
    }
    return ParityTurn(**(values | changes))


def a_parity(turns, **changes) -> Parity:
    prompts: dict[str, list[str]] = {}
    for turn in turns:
        prompts.setdefault(turn.task, []).append(turn.prompt)
    build = an_arm("shallow").draft
    assert build is not None
    values = {
        "id": "2026-11-30-0123456789ab",
        "created_at": "2026-11-30T10:00:00.123Z",
        "draftrank_version": "0.3.0",
        "target": "small-target",
        "target_sha256": "3" * 64,
        "target_weights_sha256": "4" * 64,
        "draft": "shallow",
        "build": build,
        "num_speculative_tokens": 3,
        "engine": "vllm",
        "engine_version": "0.32.0",
        "speculation": {"method": "draft_model", "num_speculative_tokens": 3},
        "form": "safetensors",
        "export_sha256": "5" * 64,
        "differs": ("Both verify chains; the recipe proposes token trees.",),
        "suite": "quick",
        "suite_sha256": "2" * 64,
        "tasks": tuple(
            SessionTask(
                task=task,
                task_sha256="6" * 64,
                prompts=tuple(names),
                turns=(1,) * len(names),
                prompts_sha256="7" * 64,
                max_new_tokens=64,
            )
            for task, names in prompts.items()
        ),
        "backend": "cpp",
        "dtype": "fp32",
        "device": "cpu",
        "machine": a_machine(),
        "rounding": 1e-4,
        "rounding_positions": 500,
        "turns": tuple(turns),
    }
    return Parity(**(values | changes))


def parted(index: int, gap: float, *, field: str = "draft_divergence") -> ParityTurn:
    """A turn whose output there parts at a token that lies this far below the target's best one."""
    tokens = (*range(index), 99, *range(index + 1, 12))
    divergence = Divergence(index=index, gap=gap, baseline_gap=0.0, before="", text="", baseline_text="")
    changed = Output(token_ids=tokens, steps=5, decode_s=1.0)
    plain = Output(token_ids=tokens, steps=11, decode_s=1.0)
    changes = {"plain_there": plain} if field == "plain_divergence" else {}
    return a_turn(draft_there=changed, **changes, **{field: divergence})
