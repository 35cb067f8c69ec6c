"""What a card says beyond its figures."""

from __future__ import annotations

import pytest

from draftrank.board.model_card import model_card
from draftrank.catalog.loading import load_declaration
from draftrank.catalog.recipe import Recipe
from draftrank.catalog.target import Target
from draftrank.measure.records import DraftBuild
from workspaces import RECIPE, TARGET

READY_MADE = """\
draft:
  kind: draft_model
  steps:
    - kind: pretrained
      licence: MIT
      source: {kind: local, path: models/other}
"""


@pytest.mark.parametrize(("made", "licence"), [(None, "apache-2.0"), (READY_MADE, "mit")])
def test_the_licence_is_that_of_the_weights_it_began_with(tmp_path, made, licence):
    text = RECIPE
    if made is not None:
        head, _, rest = RECIPE.partition("draft:")
        text = head + made + "speculate:" + rest.partition("speculate:")[2]
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "ngram.yaml").write_text(text)
    (folder / "target.yaml").write_text(TARGET)
    recipe = load_declaration(folder / "ngram.yaml", Recipe)
    build = DraftBuild(
        recipe=recipe.model_dump(mode="json", exclude_none=True),
        recipe_sha256=recipe.content_sha256(),
        weights_sha256=None,
        techniques=recipe.draft.techniques,
        trained=False,
        parameters=1,
        bytes_on_disk=4,
        build_s=1.0,
    )
    card = model_card(build, load_declaration(folder / "target.yaml", Target), (), (), {})
    assert card.splitlines()[1] == f'license: "{licence}"'
