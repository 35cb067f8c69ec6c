"""Servers of a serving session: what is recorded of them, and what is not."""

from __future__ import annotations

import json
from pathlib import Path

from draftrank.serving.base import Served, Speculation
from draftrank.serving.llama_cpp import LlamaCpp
from draftrank.serving.vllm import Vllm
from draftrank.workflows.serving_arms import MAX_LOG, Servers, _flags, threads_of
from served_sessions import SERVER


def servers(tmp_path: Path, **changes) -> Servers:
    declared = SERVER.model_copy(update=changes)
    return Servers(Vllm(Path("/opt/python")), declared, tmp_path / "model", tmp_path, tmp_path, 1.0)


def test_flags_name_neither_programs_nor_places_nor_ports():
    served = Served(Path("/home/me/models/t"), "draftrank", 43210, 64, "bf16", 2, flags=("/etc/secret/x",))
    speculation = Speculation("eagle3", 3, Path("/home/me/drafts/head"))
    for engine in (Vllm(Path("/opt/bin/python")), LlamaCpp(Path("/opt/bin/llama-server"))):
        words = _flags(engine.launch(served, speculation), served, speculation)
        text = json.dumps(words)
        assert not [part for part in ("/home", "/opt", "/etc", "43210") if part in text]
        assert "TARGET" in words
        assert "PORT" in words
        assert "DRAFT" in text
        assert "x" in words


def test_logs_lose_places_colours_and_what_shows_nothing(tmp_path):
    found = servers(tmp_path).shown(
        f"{tmp_path}/cache \x1b[31mred\x1b[0m {Path.home()}/x a\u202eb\x07" + "y" * 9
    )
    assert found == "<workspace>/cache red ~/x ab" + "y" * 9
    assert len(servers(tmp_path).shown("z" * 99_999)) == MAX_LOG


def test_memory_says_how_many_more_servers_fit(tmp_path, monkeypatch):
    class Memory:
        available = 10 << 30

    monkeypatch.setattr("psutil.virtual_memory", Memory)
    here = servers(tmp_path)
    assert [here.hold(size << 30) for size in (2, 5, 20)] == [4, 1, 0]
    assert here.hold(0) > 1000  # not known


def test_threads_are_those_declared():
    assert threads_of(SERVER.model_copy(update={"threads": 3})) == 3
    assert threads_of(SERVER) >= 1
