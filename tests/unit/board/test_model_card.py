"""What a card says beyond its figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders import result
from draftrank.board.model_card import model_card
from draftrank.board.ranking import build_boards
from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.catalog.loading import load_declaration
from draftrank.catalog.programs import ProgramUse
from draftrank.catalog.recipe import Recipe
from draftrank.catalog.target import Target
from draftrank.measure.records import DraftBuild
from parities import a_parity, a_turn
from workspaces import RECIPE, TARGET

READY_MADE = """\
draft:
  kind: draft_model
  steps:
    - kind: pretrained
      licence: MIT
      source: {kind: local, path: models/other}
"""


@pytest.fixture
def target(tmp_path) -> Target:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "target.yaml").write_text(TARGET)
    return load_declaration(tmp_path / "tiny" / "target.yaml", Target)


def a_build(recipe: Recipe, weights: str) -> DraftBuild:
    return DraftBuild(
        recipe=recipe.model_dump(mode="json", exclude_none=True),
        recipe_sha256=recipe.content_sha256(),
        weights_sha256=weights,
        techniques=recipe.draft.techniques,
        trained=False,
        parameters=1,
        bytes_on_disk=4,
        build_s=1.0,
    )


@pytest.mark.parametrize(("made", "licence"), [(None, "apache-2.0"), (READY_MADE, "mit")])
def test_the_licence_is_that_of_the_weights_it_began_with(tmp_path, target, made, licence):
    text = RECIPE
    if made is not None:
        head, _, rest = RECIPE.partition("draft:")
        text = head + made + "speculate:" + rest.partition("speculate:")[2]
    card = model_card(a_build(declared(tmp_path, text), "b" * 64), target, (), (), (), {})
    assert card.splitlines()[1] == f'license: "{licence}"'


def test_what_the_draft_does_in_the_program_is_that_of_these_weights_and_the_newest(tmp_path, target):
    build = a_build(declared(tmp_path, RECIPE), "b" * 64)
    turns = [a_turn(prompt=f"p{number}") for number in range(4)]
    older = a_parity(turns, build=build, engine_version="0.31.0")
    newest = a_parity(turns, build=build, created_at="2026-12-01T10:00:00Z")
    others = a_parity(turns, build=a_build(declared(tmp_path, RECIPE), "c" * 64), engine_version="0.33.0")
    uses = [ProgramUse(name, "sh", "serve", None) for name in ("vLLM", "llama.cpp")]
    vllm, llama_cpp = model_card(build, target, (), (newest, others, older), uses, {}).split("### ")[1:]
    assert (
        "Parity holds with draftrank's engine (“here”: cpp) on the same prompts (quick, fp32, k=3, 2026-12-01). "
        "vLLM 0.32.0: acceptance length 2.20 against 2.20 here (ratio 1.00, 1.00–1.00), outputs identical. "
        "Both verify chains; the recipe proposes token trees."
    ) in vllm
    assert "0.31" not in vllm
    assert "0.33" not in vllm
    assert "Not compared in llama.cpp" in llama_cpp
    (missed,) = model_card(build, target, (), (others,), uses[:1], {}).split("### ")[1:]
    assert "Not compared in vLLM" in missed


@pytest.mark.parametrize(
    ("mode", "output"),
    [(DecodingMode(), "identical"), (DecodingMode(temperature=0.8), "not compared")],
    ids=["greedy", "sampling"],
)
def test_outputs_without_a_break_or_tie_are_named_by_what_they_are(target, mode, output):
    (board,) = build_boards([result({"a": 1.5}, mode=mode)])
    (row,) = board.rows
    assert row.build is not None
    assert f"| {output} | 2026-11-01 |" in model_card(row.build, target, [board], (), (), {})


def declared(folder: Path, text: str) -> Recipe:
    (folder / "tiny" / "ngram.yaml").write_text(text)
    return load_declaration(folder / "tiny" / "ngram.yaml", Recipe)
