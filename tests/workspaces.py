"""Small workspaces to test on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]

RECIPE = """\
# yaml-language-server: $schema=schemas/recipe.json
schema_version: 1
id: ngram
target: tiny
title: N-grams
authors:
  - name: Test
draft:
  kind: ngram
  max_ngram: 3
speculate:
  num_speculative_tokens: 3
"""

TARGET = """\
schema_version: 1
id: tiny
title: A tiny model
licence: Apache-2.0
source:
  kind: local
  path: models/tiny
prompt_format: completion
"""

TASK = """\
schema_version: 1
id: small
title: Small
licence: Apache-2.0
source:
  kind: local
  path: tasks/prompts/small.jsonl
  sha256: {sha256}
max_new_tokens: 12
"""

SUITE = """\
schema_version: 1
id: quick
title: Quick
tasks:
  - task: small
repeats: 2
"""

PROMPTS = [
    {"id": "one", "turns": ["the cat sat on the mat and the cat sat on", "and then the dog"]},
    {"id": "two", "turns": ["one two three one two three one two"]},
    {"id": "three", "turns": ["a dog and a cat and a dog"]},
]


PLAIN = {"backend": "transformers", "dtype": "fp32", "device": "cpu"}
"""What a session of exact outputs asks for, on every machine."""


def plain_request(target="tiny", *given, **asked):
    """A run in fp32 by transformers, unless something else is asked for."""
    from draftrank import RunRequest

    return RunRequest(target, *given, **(PLAIN | asked))


def run_drafts(root, *drafts, **asked):
    """The session of such a run of these drafts, or of all that are quick to build."""
    from draftrank import Store, Workspace, run

    workspace = Workspace.open(root)
    with Store.open(workspace.store_url) as store:
        return run(workspace, plain_request("tiny", drafts, **asked), store)


def recipe_of(draft_id: str, draft: str) -> str:
    """The recipe of another draft than n-grams; its fields are indented by two blanks."""
    text = RECIPE.replace("id: ngram", f"id: {draft_id}")
    return text.replace("kind: ngram\n  max_ngram: 3", draft)


def write_draft(root: Path, draft_id: str, draft: str) -> Path:
    """Declares another draft; returns its file."""
    path = root / "drafts" / "tiny" / f"{draft_id}.yaml"
    path.write_text(recipe_of(draft_id, draft))
    return path


def write_workspace(root: Path, prompts: list[dict] | None = None) -> Path:
    """Writes a valid workspace whose target's weights are still missing; returns its root."""
    (root / "drafts" / "tiny").mkdir(parents=True)
    (root / "tasks" / "prompts").mkdir(parents=True)
    (root / "tasks" / "suites").mkdir()
    write_prompts(root, prompts if prompts is not None else PROMPTS)
    (root / "drafts" / "tiny" / "target.yaml").write_text(TARGET)
    (root / "drafts" / "tiny" / "ngram.yaml").write_text(RECIPE)
    (root / "tasks" / "suites" / "quick.yaml").write_text(SUITE)
    return root


def write_prompts(root: Path, prompts: list[dict] | str) -> None:
    """Writes the task `small` with these rows, or this raw text, and its right hash."""
    text = prompts if isinstance(prompts, str) else "".join(json.dumps(row) + "\n" for row in prompts)
    (root / "tasks" / "prompts" / "small.jsonl").write_text(text)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    (root / "tasks" / "small.yaml").write_text(TASK.format(sha256=sha256))
