"""Identity, canonical form, schemas, prompts: what declarations guarantee."""

from __future__ import annotations

import json
from itertools import pairwise

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftrank.catalog.formatting import canonical_text, is_canonical
from draftrank.catalog.loading import load_declaration
from draftrank.catalog.prompts import read_prompts, select_prompts
from draftrank.catalog.recipe import Recipe
from draftrank.catalog.schemas import FOLDER, MODELS, generated_text
from draftrank.catalog.starters import start
from draftrank.catalog.task import Suite, SuiteTask
from draftrank.catalog.workspace import Workspace
from draftrank.catalog.yaml_file import read_yaml
from draftrank.errors import InvalidInputError, MissingDataError
from draftrank.kinds import STEPS
from draftrank.version import __version__
from workspaces import RECIPE, write_draft, write_prompts, write_workspace

REPOSITORY = Workspace.open(__file__.rsplit("/tests/", 1)[0])


def load(tmp_path, text):
    path = tmp_path / "ngram.yaml"
    path.write_text(text)
    return load_declaration(path, Recipe)


def test_comments_order_and_descriptions_do_not_change_identity(tmp_path):
    first = load(tmp_path, RECIPE).content_sha256()
    lines = RECIPE.splitlines()
    head, draft = lines[1:7], lines[7:]
    shuffled = "\n".join(["# a comment", *draft, "", *head]) + "\n"
    assert load(tmp_path, shuffled).content_sha256() == first
    assert load(tmp_path, RECIPE.replace("N-grams", "Other words")).content_sha256() == first
    # Writing a default out says the same thing.
    assert (
        load(tmp_path, RECIPE.replace("max_ngram: 3", "max_ngram: 3\n  min_ngram: 1")).content_sha256()
        == first
    )


@pytest.mark.parametrize(
    "change", [("max_ngram: 3", "max_ngram: 4"), ("tokens: 3", "tokens: 2"), ("target: tiny", "target: huge")]
)
def test_what_decides_the_draft_changes_identity(tmp_path, change):
    assert load(tmp_path, RECIPE).content_sha256() != load(tmp_path, RECIPE.replace(*change)).content_sha256()


def test_the_committed_schemas_are_current():
    for name in MODELS:
        assert (FOLDER / f"{name}.json").read_text("utf-8") == generated_text(name), "run: ci/generate.py"


@pytest.mark.parametrize(
    "path",
    [path for path, _ in REPOSITORY.declaration_paths()],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_the_repositorys_declarations_satisfy_their_schema_and_form(path):
    model = dict(REPOSITORY.declaration_paths())[path]
    schema = json.loads((FOLDER / f"{next(n for n, m in MODELS.items() if m is model)}.json").read_text())
    jsonschema.validate(read_yaml(path).data, schema)
    assert is_canonical(path, model)
    header = path.read_text().splitlines()[0].partition("$schema=")[2]
    assert (path.parent / header).resolve().parent == FOLDER


def test_the_repository_is_valid():
    assert REPOSITORY.check().problems == ()


def test_the_schema_refuses_what_the_model_refuses():
    schema = json.loads((FOLDER / "recipe.json").read_text())
    data = {
        "schema_version": 1, "id": "x", "target": "t", "title": "T", "authors": [{"name": "A"}],
        "draft": {"kind": "ngram"}, "speculate": {"num_speculative_tokens": 2},
    }  # fmt: skip
    jsonschema.validate(data, schema)
    for bad in (
        {**data, "foo": 1},
        {**data, "draft": {"kind": "nope"}},
        {**data, "speculate": {"num_speculative_tokens": 0}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema)


MESSY = """\
# About the whole file.
target: tiny
schema_version: 1
# Why this k.
speculate: {num_speculative_tokens: 3}   # small
id: ngram
title: 'N-grams'
draft:
    kind: ngram
    # Long runs first.
    max_ngram: 3
authors: [{name: Test}]
"""


def test_the_canonical_form_orders_fields_and_keeps_comments(tmp_path):
    text = canonical_text(MESSY, Recipe, "schemas/recipe.json")
    assert text.startswith(
        "# yaml-language-server: $schema=schemas/recipe.json\nschema_version: 1\nid: ngram\n"
    )
    for comment in ("# About the whole file.", "# Why this k.", "# small", "# Long runs first."):
        assert comment in text
    assert text.index("# Why this k.") == text.index("speculate:") - len("# Why this k.\n")
    assert canonical_text(text, Recipe, "schemas/recipe.json") == text
    before, after = load(tmp_path, MESSY), load(tmp_path, text)
    assert before == after


@given(order=st.permutations(RECIPE.splitlines(keepends=True)[1:5]))
def test_the_canonical_form_does_not_depend_on_order(order):
    rest = "".join(RECIPE.splitlines(keepends=True)[5:])
    assert canonical_text("".join(order) + rest, Recipe, "schemas/recipe.json") == RECIPE


def test_starters_are_valid_and_never_overwrite(tmp_path):
    workspace = Workspace.open(write_workspace(tmp_path))
    draft = start(workspace, "draft", "depth8", target="tiny", author="Ann")
    start(workspace, "task", "my-task")
    assert workspace.check().problems == ()
    assert workspace.recipe("tiny", "depth8").authors[0].name == "Ann"
    for call in (
        lambda: start(workspace, "draft", "depth8", target="tiny", author="Ann"),
        lambda: start(workspace, "task", "my-task"),
    ):
        with pytest.raises(InvalidInputError, match="exists already"):
            call()
    with pytest.raises(InvalidInputError, match="cannot be an id"):
        start(workspace, "task", "../evil")
    assert draft.read_text().startswith("# yaml-language-server")


def test_prompt_templates_read_nested_fields_and_leave_other_braces(tmp_path):
    write_workspace(tmp_path)
    write_prompts(tmp_path, [{"key": 7, "q": [[{"content": "hi"}]], "f": [{"name": "é"}]}])
    path = tmp_path / "tasks" / "small.yaml"
    path.write_text(
        path.read_text()
        + 'read:\n  id: "{key}-{row}"\n  turns:\n    - "{q.0.0.content} {f} {not a field} {}"\n  reference: "{key}"\n'
    )
    workspace = Workspace.open(tmp_path)
    (prompt,) = read_prompts(workspace.task("small"), workspace.fetch_context())
    assert prompt.id == "7-1"
    assert prompt.turns == ('hi [{"name": "é"}] {not a field} {}',)
    assert prompt.reference == "7"


def test_other_line_separators_inside_json_text_do_not_split_rows(tmp_path):
    write_workspace(tmp_path)
    write_prompts(tmp_path, '{"id": "1", "turns": ["a\u2028b\u0085c"]}\n{"id": "2", "turns": ["d"]}\n')
    workspace = Workspace.open(tmp_path)
    prompts = read_prompts(workspace.task("small"), workspace.fetch_context())
    assert [prompt.turns[0] for prompt in prompts] == ["a\u2028b\u0085c", "d"]


@given(
    total=st.integers(1, 60),
    wanted=st.one_of(st.none(), st.integers(1, 80)),
    limit=st.one_of(st.none(), st.integers(2, 300)),
)
def test_a_suite_takes_prompts_at_even_distances(total, wanted, limit):
    from draftrank.catalog.prompts import Prompt

    prompts = tuple(Prompt(str(i), ("x",)) for i in range(total))
    task = REPOSITORY.task("math")
    entry = SuiteTask(task="math", prompts=wanted)
    suite = Suite(schema_version=1, id="s", title="S", tasks=(entry,), max_new_tokens=limit)
    chosen = select_prompts(suite, entry, task, prompts)
    indices = [int(prompt.id) for prompt in chosen.prompts]
    assert len(indices) == min(wanted or total, total)
    assert indices == sorted(set(indices))
    gaps = [b - a for a, b in pairwise(indices)]
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert chosen.max_new_tokens == min(task.max_new_tokens, limit or task.max_new_tokens)


SHIPPED = ["chat", "math", "summarization", "translation", "rag", "writing"]


@pytest.mark.parametrize("task_id", SHIPPED)
def test_our_own_prompts_are_enough_and_no_two_alike(task_id):
    prompts = read_prompts(REPOSITORY.task(task_id), REPOSITORY.fetch_context())
    assert len(prompts) >= 24
    grams: dict[tuple[str, ...], str] = {}
    for prompt in prompts:
        words = " ".join(prompt.turns).lower().split()
        for first in range(len(words) - 12):
            gram = tuple(words[first : first + 13])
            assert grams.setdefault(gram, prompt.id) == prompt.id
    if task_id == "chat":
        assert all(len(prompt.turns) == 2 for prompt in prompts)
    if task_id == "math":
        assert all(prompt.reference for prompt in prompts)
    if task_id in ("summarization", "rag"):
        assert all(300 <= len(prompt.turns[0].split()) <= 880 for prompt in prompts)


def test_data_that_is_absent_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("DRAFTRANK_DATA", str(tmp_path))
    with pytest.raises(MissingDataError, match="DRAFTRANK_DATA"):
        read_prompts(REPOSITORY.task("gsm8k"), REPOSITORY.fetch_context())


def test_a_confidence_is_asked_of_models_only_and_changes_the_identity_only_when_given(tmp_path):
    asking = RECIPE.replace("tokens: 3", "tokens: 3\n  stop_below_confidence: 0.4")
    with pytest.raises(InvalidInputError, match=r"a draft of kind .ngram. does not have.*remove it"):
        load(tmp_path, asking)
    exit_early = ("kind: ngram\n  max_ngram: 3", "kind: early_exit\n  layers: 2")
    wary = load(tmp_path, asking.replace(*exit_early))
    assert wary.speculate.stop_below_confidence == 0.4
    plain = load(tmp_path, RECIPE.replace(*exit_early))
    assert plain.content_sha256() != wary.content_sha256()
    assert "stop_below_confidence" not in plain.model_dump(mode="json", exclude_none=True)["speculate"]
    with pytest.raises(InvalidInputError, match="stop_below_confidence"):
        load(tmp_path, asking.replace(*exit_early).replace("0.4", "1.0"))


MINOR_VERSION = __version__.rpartition(".")[0] + "."


def test_published_recipes_keep_their_identity():
    """A new field with a default must not change what is known under a hash already."""
    for path in sorted(REPOSITORY.published.rglob("*.json")):
        header = json.loads(path.read_text())["session"]
        if not header["draftrank_version"].startswith(MINOR_VERSION):
            continue  # archived: its recipe is in the words of its own version
        builds = [arm["draft"] for arm in header["arms"] if arm["draft"]]
        assert builds
        for build in builds:
            if {step["kind"] for step in build["recipe"]["draft"].get("steps", ())} - STEPS.keys():
                continue  # a step of it has retired since
            recipe = Recipe.model_validate(build["recipe"], strict=False)
            assert recipe.content_sha256() == build["recipe_sha256"]


PRETRAINED = """kind: draft_model
  vocabulary: string_match
  steps:
    - {kind: pretrained, licence: MIT, source: SOURCE}"""


def test_a_ready_made_model_may_be_a_declared_target(tmp_path):
    """It is then the model that the target's file names, whatever the target is called."""
    workspace = Workspace.open(write_workspace(tmp_path))

    def recipe(source):
        write_draft(tmp_path, "other", PRETRAINED.replace("SOURCE", source))
        return workspace.recipe("tiny", "other")

    named, written = recipe("tiny"), recipe("{kind: local, path: models/tiny}")
    assert named.content_sha256() == written.content_sha256()
    assert named.draft.steps[0].source == workspace.target("tiny").source
    target = tmp_path / "drafts" / "tiny" / "target.yaml"
    recipe("tiny")
    assert target in workspace.files_of_recipe("tiny", "other")
    with pytest.raises(InvalidInputError, match=r"there is no target 'another'.*one of tiny"):
        recipe("another")
    with pytest.raises(InvalidInputError, match=r"source.*path"):
        recipe("{kind: local}")
    with pytest.raises(InvalidInputError, match="a folder or a GGUF file"):
        recipe("{kind: inline, prompts: [{turns: [x]}]}")
    with pytest.raises(InvalidInputError, match=r"steps.0.*source"):
        recipe("7")
