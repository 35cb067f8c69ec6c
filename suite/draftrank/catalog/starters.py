"""Commented declarations to start from: what `draftrank new` writes. A test keeps them valid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from draftrank.catalog.base import Declared, Identifier, Line
from draftrank.catalog.formatting import format_file
from draftrank.catalog.recipe import Recipe
from draftrank.catalog.self_generated import Corpus
from draftrank.catalog.server import Server
from draftrank.catalog.task import Task
from draftrank.catalog.workspace import Workspace
from draftrank.errors import InvalidInputError

RECIPE = """\
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
  kind: draft_model
  # Done in this order to a copy of the target; `draftrank list steps` shows all steps.
  steps:
    - kind: drop_layers
      keep: 8
      # ends, even, first or block_influence; or name the layers: keep: [0, 1, 28, 29]
      select: ends
    - kind: distill
      objective: kl
      # Or the name of a corpus in drafts/{target}/corpora/ (`draftrank new corpus`).
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

CORPUS = """\
schema_version: 1
# The file's name without .yaml; recipes name it: `data: {stem}`.
id: {id}
# The target that writes the text.
target: {target}
description: What the text is for.
text:
  kind: self_generated
  tokens: 240_000
  sequence_tokens: 256
  prompt_temperature: 0.8
  # How prompts begin, each prefix equally often; without any, a small target writes about few subjects.
  # Also a text file of the workspace with one prefix a line: `prompt_prefixes: drafts/prompt-prefixes.txt`.
  prompt_prefixes:
    - What is
    - How do I
    - Write a Python function that
    - Summarize this article
"""

TASK = """\
schema_version: 1
# The file's name without .yaml.
id: {id}
title: My task
description: What kind of output this stands for, and where the prompts come from.
# Licence of the prompts.
licence: CC-BY-4.0
# For more than a few prompts use JSON Lines:
#   kind: local
#   path: tasks/prompts/{stem}.jsonl
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

SERVER = """\
schema_version: 1
# The file's name without .yaml.
id: {id}
title: My server
description: Whose deployment this stands for.
# vllm, llama.cpp or sglang; `draftrank doctor` shows which are here.
engine: vllm
# What it computes in: fp32, bf16 or fp16.
dtype: bf16
# Tokens that a prompt and its output may have together.
context: 2048
# Requests that it works on at once; more wait.
max_requests: 16
# More flags, one word each, for all arms alike:
#   flags: [--enable-chunked-prefill]
# Or, for servers that run already, in place of starting them:
#   attach:
#     url: http://127.0.0.1:8000
#     drafts: {{ngram: "http://127.0.0.1:8001"}}
#     token_env: MY_TOKEN
"""


def start(
    workspace: Workspace,
    what: Literal["draft", "corpus", "task", "server"],
    new_id: str,
    *,
    target: str = "",
    author: str = "your name",
) -> Path:
    """Writes a commented declaration; returns its path. Drafts and corpora are for a target, drafts have an author.

    Raises:
        InvalidInputError: the target is unknown, the id or the author's name is malformed, or the file exists.
    """
    kinds: dict[str, tuple[str, str, type[Declared]]] = {
        "draft": (f"drafts/{target}", RECIPE, Recipe),
        "corpus": (f"drafts/{target}/corpora", CORPUS, Corpus),
        "task": ("tasks", TASK, Task),
        "server": ("tasks/servers", SERVER, Server),
    }
    folder, text, model = kinds[what]
    workspace.require_own()
    if target:
        workspace.target(target)
    require_text(Line, author, "an author's name", "write one line of text")
    names = {"id": _scalar(new_id), "stem": new_id, "target": _scalar(target), "author": _scalar(author)}
    return write_new(workspace.root / folder / f"{new_id}.yaml", new_id, text.format(**names), model)


def write_new(path: Path, new_id: str, text: str, model: type[Declared]) -> Path:
    """Writes a valid declaration in canonical form; returns its path.

    Raises:
        InvalidInputError: the id is malformed, or the file exists.
    """
    require_new(path, new_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    format_file(path, model)
    return path


def require_new(path: Path, new_id: str) -> None:
    """Refuses an id or a file to write; raises as `write_new`."""
    require_text(Identifier, new_id, "an id", "use lower-case letters, digits, dots and dashes")
    if path.exists():
        raise InvalidInputError.single("exists already", file=str(path), fix="choose another id")


def require_text(kind: Any, text: str, what: str, fix: str) -> None:
    """Refuses a text that is not of a kind of pydantic's.

    Raises:
        InvalidInputError: it is not; the message names `what` and the fix.
    """
    try:
        TypeAdapter(kind).validate_python(text)
    except ValidationError:
        raise InvalidInputError.single(f"{text!r} cannot be {what}", fix=fix) from None


def _scalar(text: str) -> str:
    """Text as YAML reads it back: in quotes where it would be a number, a boolean or something else."""
    try:
        plain = YAML(typ="safe", pure=True).load(f"key: {text}\n") == {"key": text}
    except YAMLError:
        plain = False
    return text if plain else json.dumps(text, ensure_ascii=False)
