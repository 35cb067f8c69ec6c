"""A workspace with a tiny random target and one recipe of every kind of draft."""

from __future__ import annotations

from pathlib import Path

from models import save_small_target
from workspaces import write_draft, write_workspace

MODEL = "kind: draft_model\n  steps:\n"
DRAFTS = {
    "early-exit": "kind: early_exit\n  layers: 2",
    "shallow": MODEL + "    - {kind: drop_layers, keep: 2, select: ends}",
    "int8": MODEL + "    - {kind: quantize, scheme: dynamic_int8}",
}


def write_tiny_workspace(root: Path, architecture: str = "llama") -> Path:
    """Target, task and four drafts; everything runs in seconds."""
    write_workspace(root)
    save_small_target(root / "models" / "tiny", architecture)
    for draft_id, body in DRAFTS.items():
        write_draft(root, draft_id, body)
    return root
