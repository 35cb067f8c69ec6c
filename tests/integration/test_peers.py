"""`ci/bench_peers.py`: engines side by side, with a server that decodes with the tiny target in the place of vLLM."""

from __future__ import annotations

import json
import sys
from importlib import import_module as script

from serving_workspace import engine

ASKED = [
    "--target",
    "tiny",
    "--suite",
    "quick",
    "--backend",
    "transformers",
    "--dtype",
    "fp32",
    "--drafts",
    "ngram",
]
SIZE = [
    "--prompts",
    "2",
    "--tokens",
    "8",
    "--rounds",
    "3",
    "--prefill",
    "4",
    "16",
    "--theirs",
    "shallow",
    "ngram",
]


def test_engines_decode_the_same_prompts_and_those_that_fail_have_a_row(
    workspace_root, monkeypatch, capsys, tmp_path
):
    monkeypatch.chdir(workspace_root)
    monkeypatch.setenv("DRAFTRANK_VLLM", engine(workspace_root, form="vllm")["DRAFTRANK_VLLM"])
    file = tmp_path / "peers.json"
    monkeypatch.setattr(sys, "argv", ["bench_peers.py", *ASKED, *SIZE, "--json", str(file)])
    assert script("bench_peers").main() == 0
    told = json.loads(file.read_text())
    rows = {(row["engine"].split()[0], row["draft"]): row for row in told["rows"]}
    plain = rows["draftrank", "plain"]
    assert plain["whole"]["ratio"] == plain["decoding"]["ratio"] == 1
    measured = [
        *(("draftrank", draft) for draft in ("plain", "plain, again", "ngram, k=3")),
        *(("transformers", draft) for draft in ("plain", "shallow, k=3", "ngram, k=3")),
        *(("vLLM", draft) for draft in ("plain", "shallow, k=3")),
    ]
    for name in measured:
        row = rows[name]
        assert (row["decoded"], row["identical"], row["failures"]) == (6, 6, []), name
        low, high = row["whole"]["interval"]
        assert 0 < low <= row["whole"]["ratio"] <= high
        assert sorted(row["first_token_s"]) == ["16", "4"]
    assert rows["vLLM", "plain"]["acceptance_length"] == 1 < rows["vLLM", "shallow, k=3"]["acceptance_length"]
    assert len(told["outputs"]) == 6 * len(measured)
    # That server knows no n-grams, and the target is no GGUF file.
    assert not rows["vLLM", "ngram, k=3"]["decoded"]
    assert rows["llama.cpp", "–"]["failures"]
    printed = capsys.readouterr().out
    assert "| vLLM 0.32.0 fp32 | shallow, k=3 |" in printed
    assert "| the server ended before it was ready" in printed
