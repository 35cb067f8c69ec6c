"""The canonical form says what the file said, whatever way it was written."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from draftrank.catalog import formatting
from draftrank.catalog.formatting import canonical_text, format_file, is_canonical
from draftrank.catalog.loading import load_declaration
from draftrank.catalog.recipe import Recipe
from draftrank.catalog.schemas import FOLDER
from draftrank.catalog.yaml_file import read_yaml
from workspaces import RECIPE

BODY = RECIPE.split("\n", 1)[1]
HEADER = "# yaml-language-server: $schema=s.json\n"
WAYS = {
    "quoted keys": BODY.replace("id: ngram", '"id": ngram'),
    "json": json.dumps(
        {
            "id": "ngram",
            "schema_version": 1,
            "target": "tiny",
            "title": "N-grams",
            "authors": [{"name": "Test"}],
            "draft": {"kind": "ngram"},
            "speculate": {"num_speculative_tokens": 3},
        }
    ),
    "document marks": f"---\n{BODY}...\n",
    "directive": f"%YAML 1.2\n---\n{BODY}",
    "blanks in a literal block": f"{BODY}description: |\n  a  \n  b # c\n\n    d\n# x\n",
    "kept line ends": f"{BODY}description: |+\n  a\n\n\n",
    "folded": f"{BODY}description: >-\n  a\n  b\n\n  c\n",
    "quotes over lines": f'{BODY}description: "a  \n\n   b\n# no comment"\n',
    "plain over lines": f"{BODY}description: a\n  b\n  c\n",
    "explicit key": f"{BODY}? description\n: abc\n",
    "carriage returns": BODY.replace("\n", "\r\n"),
    "byte order mark": f"\ufeff{BODY}",
    "list without indent": BODY.replace("  - name: Test", "- name: Test"),
    "escapes": f'{BODY}description: "\\u00e9 \\ud83d\\ude00"\n',
    "hexadecimal": BODY.replace("tokens: 3", "tokens: 0x3"),
}


@pytest.mark.parametrize("text", WAYS.values(), ids=WAYS)
def test_every_way_of_writing_keeps_its_content_and_settles_at_once(text, tmp_path):
    path = tmp_path / "ngram.yaml"
    path.write_text(text, "utf-8", newline="")
    before = load_declaration(path, Recipe)
    form = canonical_text(path.read_text("utf-8"), Recipe, "s.json")
    path.write_text(form, "utf-8")
    assert load_declaration(path, Recipe) == before
    assert form.startswith(HEADER)
    assert canonical_text(form, Recipe, "s.json") == form


@given(
    description=st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1),
    quote=st.booleans(),
)
def test_no_text_is_changed(description, quote):
    written = json.dumps(description, ensure_ascii=quote)
    text = f"{BODY}description: {written}\n"
    form = canonical_text(text, Recipe, "s.json")
    assert form == canonical_text(form, Recipe, "s.json")
    loaded = YAML(typ="safe", pure=True).load
    assert loaded(form) == loaded(text)


def test_a_first_line_is_left_alone_where_the_schemas_lie_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "drafts" / "tiny").mkdir(parents=True)
    path = tmp_path / "drafts" / "tiny" / "ngram.yaml"
    named = "# yaml-language-server: $schema=/opt/a-colleagues/recipe.json\n" + BODY
    path.write_text(named)
    assert is_canonical(path, Recipe)
    path.write_text(BODY)
    assert format_file(path, Recipe)
    first = path.read_text().splitlines()[0].partition("$schema=")[2]
    assert (path.parent / first).resolve() == FOLDER / "recipe.json"
    # A workspace that holds the schemas has one right first line.
    monkeypatch.setattr(formatting, "FOLDER", tmp_path / "schemas")
    path.write_text(named)
    assert format_file(path, Recipe)
    assert path.read_text().startswith("# yaml-language-server: $schema=../../schemas/recipe.json\n")
    assert read_yaml(path).data["id"] == "ngram"
