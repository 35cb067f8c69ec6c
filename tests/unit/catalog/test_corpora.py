"""Corpora: declared once, referred to by name, part of the identity of each recipe that names them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commands import draftrank
from draftrank.catalog.base import sha256_of_json
from draftrank.catalog.changes import compare_workspaces
from draftrank.catalog.recipe import Recipe
from draftrank.catalog.schemas import FOLDER
from draftrank.catalog.starters import start
from draftrank.catalog.workspace import Workspace
from draftrank.catalog.yaml_file import read_yaml
from draftrank.errors import InvalidInputError
from draftrank.models.cache import draft_key
from examples import examples
from workspaces import RECIPE, TARGET, write_workspace

ROOT = Path(__file__).parents[3]
TEXT = "tokens: 2_000\n  sequence_tokens: 64"
CORPUS = f"""\
schema_version: 1
id: chat
target: tiny
text:
  kind: self_generated
  {TEXT}
"""
MODEL = """kind: draft_model
  calibration: {data}
  steps:
    - kind: drop_layers
      keep: 2
      select: ends
    - kind: trim_vocabulary
      keep_tokens: 40
      data: {data}
    - kind: distill
      data: {data}
"""
INLINE = "{kind: self_generated, tokens: 2_000, sequence_tokens: 64}"


def write_recipe(workspace: Workspace, data: str, name: str = "small", target: str = "tiny") -> Path:
    path = workspace.root / "drafts" / target / f"{name}.yaml"
    text = RECIPE.replace("kind: ngram\n  max_ngram: 3\n", MODEL.format(data=data))
    path.write_text(text.replace("id: ngram", f"id: {name}").replace("target: tiny", f"target: {target}"))
    return path


def write_corpus(workspace: Workspace, text: str = CORPUS, name: str = "chat", target: str = "tiny") -> Path:
    path = workspace.root / "drafts" / target / "corpora" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text)
    return path


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    found = Workspace.open(write_workspace(tmp_path))
    write_corpus(found)
    return found


def problems(workspace: Workspace) -> str:
    return "\n".join(map(str, workspace.check().problems))


def test_a_named_corpus_gives_the_recipe_that_declares_it_in_place(workspace):
    write_recipe(workspace, "chat")
    write_recipe(workspace, INLINE, "same")
    named, inline = workspace.recipe("tiny", "small"), workspace.recipe("tiny", "same")
    assert named.draft == inline.draft
    as_declared = {"kind": "self_generated", "tokens": 2_000, "sequence_tokens": 64}
    recorded = json.loads(json.dumps(named.model_dump(mode="json", exclude_defaults=True)))
    assert recorded["draft"]["calibration"] == as_declared
    assert [step.get("data") for step in recorded["draft"]["steps"]] == [None, as_declared, as_declared]
    # What is recorded needs no workspace any more.
    assert Recipe.model_validate_json(json.dumps(recorded)).content_sha256() == named.content_sha256()
    assert named.content_sha256() == sha256_of_json(
        {k: v for k, v in recorded.items() if k not in ("title", "authors")}
    )


def test_a_changed_corpus_changes_its_recipes_and_no_others(workspace):
    write_recipe(workspace, "chat")
    write_recipe(workspace, INLINE, "other")
    before = workspace.check()
    write_corpus(workspace, CORPUS.replace("target: tiny", "target: tiny\ndescription: Words only."))
    assert compare_workspaces(before, workspace.check()).drafts == ()
    write_corpus(workspace, CORPUS.replace("sequence_tokens: 64", "sequence_tokens: 65"))
    assert compare_workspaces(before, workspace.check()).drafts == (("tiny", "small"),)
    assert workspace.recipe("tiny", "small").draft.steps[2].data.sequence_tokens == 65


def test_an_unknown_corpus_is_named_with_file_field_and_those_there_are(workspace):
    path = write_recipe(workspace, "cat")
    told = problems(workspace)
    line = path.read_text().splitlines().index("      data: cat") + 1
    assert f"drafts/tiny/small.yaml:{line}: draft.steps.1.data: tiny has no corpus 'cat'" in told
    assert all(f"draft.{field}: " in told for field in ("calibration", "steps.1.data", "steps.2.data"))
    assert "known: chat)" in told
    with pytest.raises(InvalidInputError, match="no corpus 'cat'"):
        workspace.recipe("tiny", "small")


def test_a_corpus_of_another_target_is_refused(workspace):
    write_corpus(
        workspace, CORPUS.replace("id: chat", "id: theirs").replace("tiny", "other"), "theirs", "other"
    )
    (workspace.root / "drafts" / "other" / "target.yaml").write_text(TARGET.replace("id: tiny", "id: other"))
    assert problems(workspace) == ""  # that nobody refers to a corpus is fine
    write_recipe(workspace, "theirs")
    told = problems(workspace)
    assert "draft.steps.2.data: the corpus 'theirs' is other's, not tiny's" in told
    assert "known: chat" in told
    write_corpus(workspace, CORPUS.replace("id: chat", "id: theirs").replace("tiny", "other"), "theirs")
    assert "the corpus is for 'other' but lies in the folder of 'tiny'" in problems(workspace)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("tokens: 2_000", "tokens: few"), "chat.yaml:6: text.tokens"),
        (("tokens: 2_000", "tokens: 2"), "text.tokens"),
        (("kind: self_generated", "kind: stolen"), "text.kind"),
        (("id: chat", "id: cat"), "differs from the file's name 'chat'"),
        (("text:", "texts:"), "texts: is not a known field (did you mean 'text'?)"),
        (("sequence_tokens: 64", "prompt_prefixes: ''"), "text.prompt_prefixes"),
        (("sequence_tokens: 64", "prompt_prefixes: []"), "text.prompt_prefixes"),
        (("sequence_tokens: 64", "prompt_prefixes: [1]"), "text.prompt_prefixes.0"),
        (("sequence_tokens: 64", "prompt_prefixes: nowhere.txt"), "nowhere.txt is not a text file"),
        (("sequence_tokens: 64", "prompt_prefixes: ../out.txt"), "leaves the workspace"),
        (("sequence_tokens: 64", "prompt_prefixes: /etc/hostname"), "leaves the workspace"),
    ],
)
def test_a_wrong_corpus_is_named_and_so_is_a_recipe_that_needs_it(workspace, change, told):
    path = write_corpus(workspace, CORPUS.replace(*change))
    path.parents[3].parent.joinpath("out.txt").write_text("What is\n")
    assert told in problems(workspace)
    write_recipe(workspace, "chat")
    found = problems(workspace)
    assert told in found
    if change[0] != "id: chat":
        assert re.search(r"small\.yaml:\d+: draft\.steps\.1\.data: the corpus 'chat' is invalid: ", found)


def test_a_wrong_text_in_a_recipe_is_named_by_its_line_and_field(workspace):
    path = write_recipe(
        workspace, "{kind: self_generated, tokens: 1.5, sequence_token: 64, prompt_prefixes: [1]}"
    )
    told = problems(workspace)
    line = path.read_text().splitlines().index("    - kind: distill") + 2
    for field in ("tokens", "sequence_token", "prompt_prefixes.0"):
        assert f"small.yaml:{line}: draft.steps.2.data.{field}: " in told
    assert "did you mean 'sequence_tokens'?" in told


def test_outside_of_a_workspace_a_name_is_refused():
    with pytest.raises(ValueError, match=r"the corpus 'chat' is only known inside a workspace"):
        Recipe.model_validate_json(json.dumps(read_recipe("chat")))


def read_recipe(data: object) -> dict:
    return {
        "schema_version": 1, "id": "x", "target": "tiny", "title": "T", "authors": [{"name": "A"}],
        "draft": {"kind": "draft_model", "steps": [{"kind": "distill", "data": data}]},
        "speculate": {"num_speculative_tokens": 2},
    }  # fmt: skip


def test_the_schema_allows_a_name_or_a_text():
    schema = json.loads((FOLDER / "recipe.json").read_text())
    for data in ("chat", {"kind": "self_generated", "tokens": 2_000, "prompt_prefixes": "drafts/a.txt"}):
        jsonschema.validate(read_recipe(data), schema)
    for data in ("No name", 3, None, {"kind": "other"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(read_recipe(data), schema)


LINES = st.lists(
    st.text(st.characters(exclude_categories=("C", "Zl", "Zp")), min_size=1, max_size=20).filter(str.strip),
    min_size=1,
    max_size=8,
)


@examples(25)
@given(lines=LINES, blanks=st.integers(0, 3))
def test_prefixes_in_a_file_are_those_written_out(tmp_path_factory, lines, blanks):
    workspace = Workspace.open(write_workspace(tmp_path_factory.mktemp("workspace")))
    (workspace.root / "drafts" / "prefixes.txt").write_text("\n".join([*lines, *[""] * blanks]), "utf-8")
    for name, prefixes in (("file", "drafts/prefixes.txt"), ("list", json.dumps(lines))):
        text = CORPUS.replace("sequence_tokens: 64", f"prompt_prefixes: {prefixes}")
        write_corpus(workspace, text.replace("id: chat", f"id: {name}"), name)
    file, written = workspace.check().corpora
    assert file.text.prompt_prefixes == tuple(lines)
    assert file.text.content_sha256() == written.text.content_sha256()


def test_prefixes_through_a_link_out_of_the_workspace_are_refused(workspace, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "prefixes.txt"
    outside.write_text("What is\n")
    (workspace.root / "drafts" / "prefixes.txt").symlink_to(outside)
    write_corpus(workspace, CORPUS.replace("sequence_tokens: 64", "prompt_prefixes: drafts/prefixes.txt"))
    assert "leaves the workspace" in problems(workspace)


def test_the_files_of_a_recipe_are_all_that_it_needs(workspace):
    drafts = workspace.root / "drafts"
    (drafts / "prefixes.txt").write_text("What is\n")
    (drafts / "others.txt").write_text("Why\n")
    named = write_corpus(
        workspace, CORPUS.replace("sequence_tokens: 64", "prompt_prefixes: drafts/prefixes.txt")
    )
    write_corpus(workspace, CORPUS.replace("id: chat", "id: unused"), "unused")
    recipe = write_recipe(workspace, "chat")
    assert workspace.files_of_recipe("tiny", "small") == (recipe, drafts / "prefixes.txt", named)
    assert workspace.files_of_recipe("tiny", "ngram") == (drafts / "tiny" / "ngram.yaml",)


def test_a_new_corpus_is_valid_canonical_and_listed(workspace):
    told = draftrank(workspace.root, "new", "corpus", "mine", "--target", "tiny")
    assert told.code == 0
    assert "drafts/tiny/corpora/mine.yaml" in told.out
    assert draftrank(workspace.root, "check", "--fix").code == 0
    write_recipe(workspace, "mine")
    assert workspace.recipe("tiny", "small").draft.steps[1].data == workspace.check().corpora[-1].text
    assert "mine" in draftrank(workspace.root, "list", "corpora").out
    with pytest.raises(InvalidInputError, match="exists already"):
        start(workspace, "corpus", "mine", target="tiny")


def test_each_prefix_of_the_repository_stands_in_one_file():
    (file,) = (ROOT / "drafts").glob("*.txt")
    first = file.read_text("utf-8").splitlines()[0]
    assert not [path for path in (ROOT / "drafts").glob("*/*.yaml") if first in path.read_text("utf-8")]
    for path in (ROOT / "drafts").glob("*/*.yaml"):
        assert "self_generated" not in json.dumps(read_yaml(path).data), f"{path}: name a corpus"


@pytest.mark.parametrize("target", ["smollm2-135m-instruct", "gemma-3-270m"])
def test_the_recipes_of_a_head_share_what_is_kept_of_it(target):
    """Alone, behind copying or in int8: each begins with the steps of `eagle3-head`, so one training serves all."""
    workspace = Workspace.open(ROOT)
    head = workspace.recipe(target, "eagle3-head").draft
    key, count = draft_key(head, "0" * 64), len(head.build_steps)
    recipes = [workspace.recipe(target, path.stem) for path in workspace.recipe_paths(target)]
    heads = [one for one in recipes if any(step.kind == "eagle_head" for step in one.draft.build_steps)]
    assert len({one.draft.kind for one in heads}) == 2
    assert {one.id: draft_key(one.draft, "0" * 64, count) for one in heads} == {one.id: key for one in heads}
    assert {step.kind for one in heads for step in one.draft.build_steps[count:]} == {"quantize"}


@pytest.mark.parametrize(
    "described", sorted((ROOT / "drafts").glob("*/kept/*.json")), ids=lambda path: path.stem
)
def test_a_kept_draft_is_what_the_recipe_of_its_name_declares(described):
    """Else a run would train for an hour what lies beside it: `key` and `facts` follow the recipe's words."""
    kept = json.loads(described.read_text("utf-8"))
    facts = kept["facts"]
    recipe = Workspace.open(ROOT).recipe(described.parents[1].name, described.stem)
    versions = facts.get("code_versions", {})
    assert (
        draft_key(recipe.draft, facts["target_weights_sha256"], None, versions) == kept["key"] == facts["key"]
    )
    assert Recipe.model_validate_json(json.dumps(facts["recipe"])) == recipe
    assert facts["recipe_sha256"] == recipe.content_sha256()
