"""Commented declarations to start from: what `draftrank new` writes. A test keeps them valid."""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from draftrank.catalog.base import Identifier
from draftrank.catalog.workspace import Workspace
from draftrank.errors import InvalidInputError

RECIPE = """\
# yaml-language-server: $schema=../../suite/draftrank/catalog/schemas/recipe.json
schema_version: 1
# The file's name without .yaml.
id: {id}
# A folder of drafts/.
target: {target}
# One line for the board.
title: Eight layers, distilled
description: What the recipe tries, and why it might work.
authors:
  - name: {author}
# `minutes` is built by every run, `hours` only when the draft is named.
effort: minutes
draft:
  # Also: {{kind: ngram, max_ngram: 3, min_ngram: 2}} or {{kind: early_exit, layers: 8}}.
  kind: model
  # Done in this order to a copy of the target; `draftrank list steps` shows all steps.
  steps:
    - kind: drop_layers
      keep: 8
      # ends, even, first or block_influence; or name the layers: keep: [0, 1, 28, 29]
      select: ends
    - kind: distill
      objective: kl
      data:
        kind: self_generated
        tokens: 40_000
        sequence_tokens: 160
      passes: 2
      learning_rate: 0.001
speculate:
  # Tokens proposed per step (k). A weak draft wants a small one.
  num_speculative_tokens: 2
"""

TASK = """\
# yaml-language-server: $schema=../suite/draftrank/catalog/schemas/task.json
schema_version: 1
# The file's name without .yaml.
id: {id}
title: My task
description: What kind of output this stands for, and where the prompts come from.
# Licence of the prompts.
licence: CC-BY-4.0
# For more than a few prompts use JSON Lines:
#   kind: local
#   path: tasks/prompts/{id}.jsonl
#   sha256: ...
source:
  kind: inline
  prompts:
    - turns:
        - Explain in three sentences why the sky is blue.
    - turns:
        - Name three uses for a brick.
        - Which of them would surprise a mason?
read:
  turns_from: turns
# Length limit of each output, in tokens.
max_new_tokens: 128
"""


def start_draft(workspace: Workspace, target: str, draft_id: str, author: str) -> Path:
    """Writes a commented recipe; returns its path.

    Raises:
        InvalidInputError: the target is unknown, the id is malformed, or the file exists.
    """
    workspace.target(target)
    path = workspace.root / "drafts" / target / f"{draft_id}.yaml"
    return _write_new(path, draft_id, RECIPE.format(id=draft_id, target=target, author=author))


def start_task(workspace: Workspace, task_id: str) -> Path:
    """Writes a commented task; returns its path; raises as `start_draft`."""
    return _write_new(workspace.root / "tasks" / f"{task_id}.yaml", task_id, TASK.format(id=task_id))


def _write_new(path: Path, new_id: str, text: str) -> Path:
    try:
        TypeAdapter(Identifier).validate_python(new_id)
    except ValidationError:
        raise InvalidInputError.single(
            f"{new_id!r} cannot be an id", fix="use lower-case letters, digits, dots and dashes"
        ) from None
    if path.exists():
        raise InvalidInputError.single("exists already", file=str(path), fix="choose another id")
    path.write_text(text, "utf-8")
    return path
