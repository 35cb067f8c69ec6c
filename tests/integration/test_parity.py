"""`draftrank parity`, as a user calls it: against transformers, and against a server that decodes with the exported files."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from commands import draftrank, several
from workspaces import REPOSITORY, write_draft

SERVER = REPOSITORY / "tests" / "model_server.py"
COPY = "kind: draft_model\n  steps:\n    - {kind: pretrained, source: {kind: local, path: models/tiny}, licence: Apache-2.0}"
"""A copy of the target: everything that it proposes is accepted, unless it is broken on the way."""


@pytest.fixture
def root(workspace_root) -> Path:
    write_draft(workspace_root, "copy", COPY)
    return workspace_root


def engine(root: Path, fault: str = "") -> dict[str, str]:
    """A program in the place of a Python that has vLLM."""
    program = root / "python-with-vllm"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {SERVER} vllm {shlex.quote(fault)} "$@"\n')
    program.chmod(0o755)
    return {"DRAFTRANK_VLLM": str(program)}


def test_generate_of_transformers_agrees_token_for_token_and_step_for_step(root):
    write_draft(root, "other", COPY.replace("draft_model", "draft_model\n  vocabulary: string_match"))
    copy, shallow, ngram, early, other = several(
        root,
        ["parity", "copy", "--engine", "transformers", "--json"],
        ["parity", "shallow", "--engine", "transformers", "--json"],
        ["parity", "ngram", "--engine", "transformers", "--json"],
        ["parity", "early-exit", "--engine", "transformers"],
        ["parity", "other", "--engine", "transformers"],
    )
    assert copy.code == shallow.code == 0, copy
    found = copy.json
    assert (found["verdict"], found["acceptance"]["ratio"], found["acceptance"]["ci"]) == ("holds", 1, [1, 1])
    assert found["acceptance"]["here"] > 3
    assert found["outputs"] == {"compared": 4, "ties": 0, "breaks": 0}
    assert "copies from the earliest match" in ngram.json["differs"][0]
    assert early.code == other.code == 2
    assert "the draft 'other' has a vocabulary of its own" in other.err
    assert "has no draft of the kind 'early_exit'" in early.err


def test_an_exported_draft_runs_in_a_server_and_its_record_travels(root, tmp_path):
    found = draftrank(root, "parity", "copy", "--engine", "vllm", "--json", **engine(root))
    assert found.code == 0, found
    document = found.json
    assert document["verdict"] == "holds"
    assert document["engine_version"] == "0.32.0"
    assert document["acceptance"]["ratio"] == 1
    assert 0 <= document["rounding"] < 1e-3 < document["rounding_positions"]
    assert document["speculation"] == {"method": "draft_model", "num_speculative_tokens": 3}
    run, published, _, _, exported = several(
        root,
        ["run", "--draft", "copy", "--backend", "transformers", "--dtype", "fp32"],
        ["publish", document["id"], "--json"],
        ["import", str(root / "leaderboard" / "parity")],
        ["site", "--out", str(tmp_path / "site")],
        ["export", "copy", "--for", "vllm", "--for", "sglang", "--to", str(tmp_path / "out")],
    )
    assert run.code == exported.code == 0, (run, exported)
    (file,) = published.json["files"]
    assert Path(file).parent == root / "leaderboard" / "parity" / "tiny" / "copy" / "vllm"
    page = (tmp_path / "site" / "drafts" / "tiny" / "copy" / "index.html").read_text()
    assert "vLLM 0.32.0: parity holds" in page
    told = "(ratio 1.00, 1.00–1.00), outputs identical"
    assert told in page
    vllm, sglang = ((tmp_path / "out" / name / "README.md").read_text() for name in ("vllm", "sglang"))
    assert "Parity holds" in vllm
    assert f"vLLM 0.32.0: acceptance length {found.json['acceptance']['there']:.2f} against" in vllm
    assert told in vllm
    assert "Not compared in SGLang" in sglang
    (listed,) = json.loads((tmp_path / "site" / "index.json").read_text())["parities"]
    assert listed == document


def test_a_draft_that_was_broken_on_its_way_is_caught(root):
    broken = draftrank(root, "parity", "copy", "--engine", "vllm", "--json", **engine(root, "swapped layers"))
    assert broken.code == 1, broken
    assert broken.json["verdict"] == "fails"
    assert broken.json["acceptance"]["ratio"] < 0.6
    assert broken.json["outputs"]["breaks"] == 0  # lossless all the same: only its speed is lost
    assert "no parity" in broken.out


def test_an_engine_that_does_not_start_is_told_with_its_log(root):
    failed, absent = (
        draftrank(root, "parity", "copy", "--engine", "vllm", **engine(root, "ends at once")),
        draftrank(root, "parity", "copy", "--engine", "llama.cpp", PATH=""),
    )
    assert (failed.code, absent.code) == (1, 1)
    assert "ended before it was ready" in failed.err
    assert "no weights here" in failed.err
    assert "make engine-llama-cpp" in absent.err
