"""The declared public benchmarks read right, for those who have their files (DRAFTRANK_TEST_DATA)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from draftrank.catalog.prompts import read_prompts
from draftrank.catalog.workspace import Workspace

ROOT = Path(__file__).parents[3]
DATA = Path(os.environ.get("DRAFTRANK_TEST_DATA") or ROOT.parent / "shared" / "data")


@pytest.mark.parametrize(
    ("task_id", "file", "count", "turns"),
    [("mt-bench", "mt_bench/question.jsonl", 80, 2), ("ifeval", "ifeval/input_data.jsonl", 541, 1)],
)
def test_public_benchmarks(task_id, file, count, turns, monkeypatch):
    if not (DATA / file).exists():
        pytest.skip(f"{file} is not in DRAFTRANK_TEST_DATA")
    monkeypatch.setenv("DRAFTRANK_DATA", str(DATA))
    workspace = Workspace.open(ROOT)
    prompts = read_prompts(workspace.task(task_id), workspace.fetch_context())
    assert len(prompts) == count
    assert {len(prompt.turns) for prompt in prompts} == {turns}
