"""A tiny workspace with a server, and programs in the engine's place that serve a toy model and break as they are told."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from workspaces import REPOSITORY, write_draft

SERVER = """\
schema_version: 1
id: toy
title: A toy
engine: vllm
dtype: fp32
context: 256
max_requests: 8
"""
_PROGRAM = """\
#!/bin/sh
case "$*" in
  *{which}*) exec {python} {server} {form} {fault} "$@";;
esac
exec {python} {server} {form} "" "$@"
"""


def declare_server(root: Path, text: str = SERVER) -> None:
    """Writes the server `toy`."""
    folder = root / "tasks" / "servers"
    folder.mkdir(exist_ok=True)
    (folder / "toy.yaml").write_text(text)


def declare_method(root: Path, draft_id: str = "method", method: str = "mtp") -> None:
    """Writes a draft that is a method of the engine."""
    body = f"kind: engine_method\n  method: {method}"
    write_draft(root, draft_id, body)


def engine(
    root: Path, fault: str = "", which: str = "speculative-config", form: str = "vllm-toy"
) -> dict[str, str]:
    """A program in the place of a Python that has vLLM; only commands that hold the word `which` are broken. In the form `vllm`
    it decodes with the models that it is given."""
    program = root / "python-with-vllm"
    program.write_text(
        _PROGRAM.format(
            which=which,
            form=form,
            python=sys.executable,
            server=REPOSITORY / "tests" / "model_server.py",
            fault=shlex.quote(fault),
        )
    )
    program.chmod(0o755)
    return {"DRAFTRANK_VLLM": str(program)}
