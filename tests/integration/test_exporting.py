"""`draftrank export`, as a user calls it."""

from __future__ import annotations

import json
import re

import torch
from transformers import AutoModelForCausalLM

from commands import draftrank, several
from workspaces import RECIPE, TARGET


def test_a_draft_is_written_with_its_card(measured_root, tmp_path):
    done = draftrank(measured_root, "export", "shallow", "--to", str(tmp_path / "out"), "--json")
    assert done.code == 0, done
    (form,) = done.json["forms"]
    assert form["program"] == "transformers"
    assert set(form["files"]) == {path.name for path in (tmp_path / "out").iterdir()}
    card = (tmp_path / "out" / "README.md").read_text()
    assert re.match(r"---\nlicense: \"apache-2.0\"\nbase_model: \"tiny\"", card)
    assert "keep 2 layers" in card
    rows = [line for line in card.splitlines() if line.startswith("| quick, ")]
    assert len(rows) == 1
    assert re.search(r"\d\.\d\d×", rows[0])
    weights = json.loads((tmp_path / "out" / "draftrank.json").read_text())["weights_sha256"]
    assert weights in card
    assert "assistant_model=draft" in card
    assert "vllm serve" not in card
    target = AutoModelForCausalLM.from_pretrained(measured_root / "models" / "tiny")
    draft = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    ids = torch.arange(3, 19)[None]
    alone = target.generate(ids, max_new_tokens=12, do_sample=False)
    assert torch.equal(target.generate(ids, max_new_tokens=12, do_sample=False, assistant_model=draft), alone)


def test_a_draft_that_one_target_has_needs_no_target_by_name(measured_root, tmp_path):
    other = measured_root / "drafts" / "other"
    other.mkdir()
    (other / "target.yaml").write_text(TARGET.replace("id: tiny", "id: other"))
    (other / "ngram.yaml").write_text(RECIPE.replace("target: tiny", "target: other"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("a")
    found, *ambiguous = several(
        measured_root,
        ["export", "shallow", "--to", str(tmp_path / "full")],
        ["export", "ngram", "--to", str(tmp_path / "a")],
        ["parity", "ngram", "--engine", "transformers"],
    )
    assert "is not empty" in found.err
    for outcome in ambiguous:
        assert outcome.code == 2
        assert "the draft 'ngram' exists for other, tiny" in outcome.err


def test_what_cannot_be_exported_is_said(measured_root, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("a")
    none, unknown, full, gguf, int8 = several(
        measured_root,
        ["export", "ngram", "--to", str(tmp_path / "a")],
        ["export", "nothing", "--to", str(tmp_path / "b")],
        ["export", "shallow", "--to", str(tmp_path / "full")],
        ["export", "shallow", "--to", str(tmp_path / "c"), "--for", "llama.cpp"],
        ["export", "int8", "--to", str(tmp_path / "d")],
    )
    assert (none.code, unknown.code, full.code, gguf.code, int8.code) == (2, 2, 2, 2, 0)
    assert "ngram has no weights to export" in none.err
    assert "is not empty" in full.err
    assert "is no GGUF file, which llama.cpp needs" in gguf.err
    assert "turned into int8 when draftrank loads it" in int8.out.replace("\n", " ")
    assert "vllm serve" not in int8.out
