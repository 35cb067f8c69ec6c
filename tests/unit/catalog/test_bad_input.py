"""Every kind of bad input gives an error that names file, line, field and fix; all of them at once."""

from __future__ import annotations

import pytest

from draftrank.catalog.workspace import Workspace
from draftrank.errors import InvalidInputError
from workspaces import RECIPE, TARGET, TASK, write_prompts, write_workspace


@pytest.fixture
def root(tmp_path):
    return write_workspace(tmp_path)


def problems(root) -> str:
    return "\n".join(map(str, Workspace.open(root).check().problems))


def test_a_valid_workspace_has_no_problems(root):
    checked = Workspace.open(root).check()
    assert checked.problems == ()
    assert [recipe.id for recipe in checked.recipes] == ["ngram"]
    assert [target.id for target in checked.targets] == ["tiny"]


def model_recipe(steps: str) -> str:
    return RECIPE.replace("kind: ngram\n  max_ngram: 3", f"kind: draft_model\n  steps:\n{steps}")


RECIPES = {
    "unknown field": (
        RECIPE.replace("max_ngram: 3", "max_ngramm: 3"),
        "drafts/tiny/ngram.yaml:10: draft.max_ngramm: is not a known field (did you mean 'max_ngram'?)",
    ),
    "wrong type": (
        RECIPE.replace("num_speculative_tokens: 3", 'num_speculative_tokens: "3"'),
        "ngram.yaml:12: speculate.num_speculative_tokens: input should be a valid integer (write a whole number)",
    ),
    "fraction": (
        RECIPE.replace("num_speculative_tokens: 3", "num_speculative_tokens: 3.5"),
        "speculate.num_speculative_tokens: input should be a valid integer",
    ),
    "k of 0": (
        RECIPE.replace("num_speculative_tokens: 3", "num_speculative_tokens: 0"),
        "ngram.yaml:12: speculate.num_speculative_tokens: input should be greater than or equal to 1 (write at least 1)",
    ),
    "unknown draft kind": (
        RECIPE.replace("kind: ngram", "kind: n-gram"),
        "ngram.yaml:9: draft.kind: 'n-gram' is not a known kind (did you mean 'ngram'?)",
    ),
    "unknown step": (
        model_recipe("    - kind: distil"),
        "draft.steps.0.kind: 'distil' is not a known kind (did you mean 'distill'?)",
    ),
    "no steps": (model_recipe("    []"), "draft.steps: tuple should have at least 1 item"),
    "missing field": (
        RECIPE.replace("title: N-grams\n", ""),
        "ngram.yaml:2: title: is missing (add the field)",
    ),
    "unknown target": (
        RECIPE.replace("target: tiny", "target: tinny"),
        "ngram.yaml: target: there is no target 'tinny' (did you mean 'tiny'?)",
    ),
    "id is not the stem": (
        RECIPE.replace("id: ngram", "id: other"),
        "ngram.yaml:3: id: the id 'other' differs from the file's name 'ngram'",
    ),
    "malformed id": (RECIPE.replace("id: ngram", "id: N Gram"), "id: string should match pattern"),
    "python tag": (
        RECIPE.replace("max_ngram: 3", "max_ngram: !!python/object/apply:os.system [id]"),
        "ngram.yaml:10: draft.max_ngram: the tag tag:yaml.org,2002:python/object/apply:os.system is not allowed",
    ),
    "alias": (
        RECIPE.replace("title: N-grams", "title: &t N"),
        "ngram.yaml:5: anchors and aliases are not allowed",
    ),
    "field twice": (RECIPE + "id: ngram\n", "ngram.yaml:13: id: the field stands twice"),
    "not finite": (
        model_recipe(
            "    - {kind: distill, learning_rate: .inf, data: {kind: self_generated, tokens: 5000}}"
        ),
        "learning_rate: the number is not finite",
    ),
    "broken YAML": (RECIPE + "speculate: [", "is not valid YAML"),
    "empty": ("", "ngram.yaml: is empty"),
    "a list": ("- 1\n", "ngram.yaml:1: must be a mapping"),
    "not UTF-8": (b"title: \xff", "ngram.yaml:1: is not UTF-8"),
    "control character": (
        RECIPE.replace("N-grams", '"N\\u0007"'),
        "title: holds the unseen character U+0007 (remove it)",
    ),
    "layers without order": (
        model_recipe("    - {kind: drop_layers, keep: [3, 1]}"),
        "draft.steps.0: the layers are not ascending and unique (sort them)",
    ),
}


@pytest.mark.parametrize("case", RECIPES)
def test_bad_recipes(root, case):
    text, expected = RECIPES[case]
    path = root / "drafts" / "tiny" / "ngram.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert expected in problems(root)


def test_all_problems_are_named_at_once(root):
    bad = (
        RECIPE.replace("title: N-grams\n", "").replace("max_ngram: 3", "max_ngram: 0").replace("3\n", "99\n")
    )
    (root / "drafts" / "tiny" / "ngram.yaml").write_text(bad + "extra: 1\n")
    (root / "tasks" / "suites" / "quick.yaml").write_text(
        "schema_version: 1\nid: quick\ntitle: Q\ntasks: [{task: nope}]\n"
    )
    found = problems(root)
    for fragment in (
        "title: is missing",
        "draft.max_ngram",
        "num_speculative_tokens",
        "extra: is not a known",
        "there is no task 'nope'",
    ):
        assert fragment in found


def test_a_recipe_in_another_targets_folder(root):
    other = root / "drafts" / "other"
    other.mkdir()
    (other / "target.yaml").write_text(TARGET.replace("id: tiny", "id: other"))
    (other / "ngram.yaml").write_text(RECIPE)
    assert (
        "the recipe is for 'tiny' but lies in the folder of 'other' (move the file to drafts/tiny/)"
        in problems(root)
    )


def test_a_targets_id_is_its_folder(root):
    (root / "drafts" / "tiny" / "target.yaml").write_text(TARGET.replace("id: tiny", "id: small"))
    assert "drafts/tiny/target.yaml:2: id: the id 'small' differs from the folder's name 'tiny'" in problems(
        root
    )


@pytest.mark.parametrize("path", ["../outside.jsonl", "/etc/passwd", "a/../../b"])
def test_a_path_that_leaves_the_workspace(root, path):
    (root / "tasks" / "small.yaml").write_text(
        TASK.format(sha256="a" * 64).replace("tasks/prompts/small.jsonl", path)
    )
    found = problems(root)
    assert "tasks/small.yaml:7: source.path: the path leaves its folder" in found


def test_a_link_that_leaves_the_workspace(root, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret.jsonl"
    outside.write_text('{"id": "1", "turns": ["x"]}\n')
    (root / "tasks" / "prompts" / "link.jsonl").symlink_to(outside)
    (root / "tasks" / "small.yaml").write_text(
        TASK.format(sha256="a" * 64).replace("small.jsonl", "link.jsonl")
    )
    assert "leaves the workspace through a link" in problems(root)


def test_a_hash_that_does_not_match_names_both(root):
    (root / "tasks" / "small.yaml").write_text(TASK.format(sha256="a" * 64))
    found = problems(root)
    assert "sha256 does not match: declared " + "a" * 64 in found
    assert "tasks/small.yaml: source.sha256" in found


BAD_ROWS = {
    "": "holds no prompts",
    "\n\n": "holds no prompts",
    '{"id": "1", "turns": ["x"]}\n{"id": "2", "tur': "small.jsonl:2 the line is cut off",
    '{"id": "1", "turns": ["x"]}\nnonsense\n': "small.jsonl:2 the line is not JSON",
    "[1]\n": "small.jsonl:1 the line is not a JSON object",
    '{"id": "1"}\n': "small.jsonl:1 the row has no field 'turns'",
    '{"turns": ["x"]}\n': "small.jsonl:1 the row has no field 'id'",
    '{"id": "1", "turns": []}\n': "'turns' is not a list of texts",
    '{"id": "1", "turns": ["  "]}\n': "a turn is empty",
    '{"id": "1", "turns": ["x"]}\n{"id": "1", "turns": ["y"]}\n': "the prompt id '1' stands twice",
}


@pytest.mark.parametrize("text", BAD_ROWS)
def test_bad_prompt_files(root, text):
    write_prompts(root, text)
    assert BAD_ROWS[text] in problems(root)


def test_a_task_with_no_inline_prompts(root):
    (root / "tasks" / "small.yaml").write_text(
        "schema_version: 1\nid: small\ntitle: S\nlicence: MIT\nsource: {kind: inline, prompts: []}\n"
    )
    assert "tasks/small.yaml:5: source.prompts: tuple should have at least 1 item" in problems(root)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda w: w.target("tinny"), "there is no target 'tinny' (did you mean 'tiny'?)"),
        (lambda w: w.recipe("tiny", "ngrm"), "there is no draft 'ngrm' (did you mean 'ngram'?)"),
        (lambda w: w.suite("fast"), "there is no suite 'fast' (known: quick)"),
        (lambda w: w.task("smal"), "there is no task 'smal' (did you mean 'small'?)"),
    ],
)
def test_unknown_names_suggest_known_ones(root, call, expected):
    with pytest.raises(InvalidInputError) as caught:
        call(Workspace.open(root))
    assert expected in str(caught.value)


def test_a_folder_that_is_no_workspace(tmp_path):
    with pytest.raises(InvalidInputError, match="is not a workspace"):
        Workspace.open(tmp_path)
