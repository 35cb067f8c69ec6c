"""A target declared from what its repository says, and the recipes that come with it."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch

import pytest

from draftrank.catalog.workspace import Workspace
from draftrank.errors import InvalidInputError, MissingDataError, UnsupportedModelError
from draftrank.jobs.session import build
from draftrank.models.description import UNKNOWN_LICENCE, describe_model
from draftrank.models.target_folder import ensure_target
from draftrank.progress import SilentProgress
from draftrank.workflows import first_recipes as recipes_module
from draftrank.workflows.new_target import target_from_folder, target_from_hub
from models import small_model, small_tokenizer
from target_fixtures import CHATML
from workspaces import write_workspace

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = "---\nlicense: apache-2.0\nlanguage:\n  - en\n---\n# A model\n"
CHAT = {"template": CHATML, "card": CARD, "generation": {"eos_token_id": 2}}
"""Of a repository that leaves nothing open."""


def save_repository(
    folder, family="llama", *, template=None, card=None, generation=None, layers=6, rows=9_000, **config
):
    """A tiny model in the hub's layout, with more rows in its vocabulary than a trained head keeps."""
    model = small_model(family, layers=layers, vocabulary=rows)
    model.save_pretrained(folder)
    small_tokenizer(template).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    if card is not None:
        (folder / "README.md").write_text(card)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


@pytest.fixture
def workspace(tmp_path):
    return Workspace.open(write_workspace(tmp_path / "workspace"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Makes the hub's client find one repository; what is asked of it is kept in `asked`."""

    class Hub:
        folder = tmp_path / "repository"
        asked: tuple[str, str] | None = None

        def hold(self, *given, **shape):
            save_repository(self.folder, *given, **shape)

    hub = Hub()

    def snapshot_download(repo_id, *, revision, allow_patterns, ignore_patterns, **_):
        hub.asked = (repo_id, revision)
        if not hub.folder.is_dir():
            raise ConnectionError("no network here")
        found = tmp_path / "hub" / COMMIT
        found.mkdir(parents=True, exist_ok=True)
        for path in (one for one in hub.folder.rglob("*") if one.is_file()):
            name = str(path.relative_to(hub.folder))
            wanted, unwanted = (
                any(fnmatch(name, pattern) for pattern in patterns)
                for patterns in (allow_patterns, ignore_patterns)
            )
            if wanted and not unwanted:
                (found / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, found / name)
        return str(found)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return hub


def declare(workspace, address=f"ours/Tiny-Chat@{COMMIT}", target_id="new"):
    return target_from_hub(workspace, target_id, address, "Ann", SilentProgress())


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi3"])
def test_a_repository_becomes_a_target_with_recipes_from_its_text_files_alone(
    family, workspace, hub, tmp_path
):
    hub.hold(family, **CHAT)
    (hub.folder / "original").mkdir()
    (hub.folder / "original" / "params.json").write_text("{}")
    found = declare(workspace)
    fetched = {path.suffix for path in (tmp_path / "hub" / COMMIT).rglob("*")}
    assert fetched <= {".json", ".jinja", ".md"}, "no weights, and nothing for other programs"
    assert hub.asked == ("ours/Tiny-Chat", COMMIT)
    assert found.open_questions == ()
    assert workspace.check([*found.files]).problems == ()
    assert {path.name for path in found.files} == {
        "target.yaml",
        "prefixed-240k.yaml",
        "ngram.yaml",
        "suffix.yaml",
        "early-exit-2.yaml",
        "eagle3-vocab8k.yaml",
    }
    target = workspace.target("new")
    assert (target.title, target.licence, target.prompt_format) == ("Tiny-Chat", "Apache-2.0", "chat")
    assert (target.source.repository, target.source.revision) == ("ours/Tiny-Chat", COMMIT)
    assert target.context_window is None
    for name in ("ngram", "suffix", "early-exit-2", "eagle3-vocab8k"):
        recipe = workspace.recipe("new", name)
        assert [author.name for author in recipe.authors] == ["Ann"]
        assert (recipe.effort == "hours") == name.startswith("eagle3")
    assert workspace.recipe("new", "eagle3-vocab8k").draft.build_steps[0].aux_hidden_states == (1, 3, 5)


def test_without_a_commit_that_of_main_is_pinned_and_the_file_says_so(workspace, hub):
    hub.hold(**CHAT)
    declare(workspace, "ours/Tiny-Chat")
    assert hub.asked == ("ours/Tiny-Chat", "main")
    target = workspace.target("new")
    assert target.source.revision == COMMIT
    assert "the commit that `main` named when it was declared" in target.description


def test_a_declared_repository_is_fetched_without_copies_of_its_weights(workspace, hub):
    hub.hold(**CHAT)
    (hub.folder / "original").mkdir()
    for name in ("consolidated.safetensors", "original/model.safetensors", "pytorch_model.bin", "run.py"):
        (hub.folder / name).write_text("another program's")
    declare(workspace)
    folder = ensure_target(workspace.target("new"), workspace.fetch_context()).path
    assert folder.name == COMMIT
    names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert "model.safetensors" in names
    assert not [name for name in names if name.startswith(("consolidated", "original", "pytorch", "run"))]


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n", "MIT"),
        ("---\r\nlicense: llama3.1\r\n---\r\ntext", "LicenseRef-Llama-3.1"),
        ("---\nlicense: gemma\n---", "LicenseRef-Gemma"),
        (
            "---\nlicense: other\nlicense_name: Our own: 2nd\n---\n".replace(
                "Our own: 2nd", "'Our own: 2nd'"
            ),
            "LicenseRef-Our-own-2nd",
        ),
        ("---\nlicense: bigscience-bloom-rail-1.0\n---\n", "LicenseRef-bigscience-bloom-rail-1.0"),
        ("---\nlicense: other\n---\n", None),
        ("---\nlicense: [mit, gpl]\n---\n", None),
        ("---\nlicense: {\n---\n", None),
        ("---\n- license\n---\n", None),
        ("# license: mit\n", None),
        (None, None),
    ],
)
def test_the_licence_is_that_of_the_model_card(card, licence, tmp_path):
    folder = save_repository(tmp_path / "model", **(CHAT | {"card": card}))
    found = describe_model(folder)
    assert found.licence == (licence or UNKNOWN_LICENCE)
    assert ("no model card (README.md) names the licence: write it to target.yaml" in found.doubts) == (
        licence is None
    )


ONE_TURN = (
    "{% if messages|length > 1 %}{{ raise_exception('one turn') }}{% endif %}[{{ messages[0]['content'] }}]"
)


@pytest.mark.parametrize(
    ("family", "changes", "told", "prompt_format"),
    [
        ("llama", {"template": None}, "has no chat template", "completion"),
        (
            "llama",
            {"template": "{{ raise_exception('never') }}"},
            "refuses the conversation: never",
            "completion",
        ),
        ("llama", {"template": ONE_TURN}, "tasks of several turns cannot be rendered", "chat"),
        ("llama", {"generation": None}, "there is no generation_config.json", "chat"),
        ("llama", {"generation": {"eos_token_id": 7}}, "name different end tokens", "chat"),
        ("llama", {"quantization_config": {"quant_method": "mxfp4"}}, "weights are quantized", "chat"),
        ("bloom", {}, "names no context window: 2,048 tokens are declared", "chat"),
        ("yarn", {}, "is not in the table", "chat"),
    ],
)
def test_what_the_files_leave_open_is_told(family, changes, told, prompt_format, workspace, hub, monkeypatch):
    if family == "yarn":
        monkeypatch.setattr(recipes_module, "ran_on_families", dict)
    hub.hold("llama" if family == "yarn" else family, **(CHAT | changes))
    found = declare(workspace)
    assert [question for question in found.open_questions if told in question], found.open_questions
    target = workspace.target("new")
    assert target.prompt_format == prompt_format
    assert target.context_window == (2_048 if family == "bloom" else None)
    assert workspace.check([*found.files]).problems == ()


def test_recipes_that_the_family_does_not_run_are_left_out_with_the_reason(workspace, hub, monkeypatch):
    cells = {
        "early_exit": "its layers are one loop",
        "eagle_head": "its layers give several states",
        "distill": None,
    }
    monkeypatch.setattr(recipes_module, "ran_on_families", lambda: {"llama": cells})
    hub.hold(**CHAT)
    found = declare(workspace)
    assert [path.stem for path in found.files] == [
        "target",
        "prefixed-240k",
        "ngram",
        "suffix",
        "layers4-vocab8k",
    ]
    assert found.open_questions == (
        "the recipe early-exit-2 is left out: its layers are one loop",
        "the recipe eagle3-vocab8k is left out: its layers give several states",
    )
    monkeypatch.setattr(recipes_module, "ran_on_families", lambda: {"llama": cells | {"distill": "no"}})
    assert [path.stem for path in declare(workspace, target_id="bare").files] == ["target", "ngram", "suffix"]


def test_a_model_that_is_smaller_than_the_recipes_has_those_that_fit(workspace, hub):
    hub.hold(layers=1, rows=262, **CHAT)
    assert [path.stem for path in declare(workspace).files] == ["target", "ngram", "suffix"]


def test_what_cannot_be_declared_is_refused_in_a_sentence_and_nothing_is_written(workspace, hub):
    with pytest.raises(
        MissingDataError, match=r"ours/Tiny-Chat@0123\w+ could not be fetched .*network access"
    ):
        declare(workspace)
    for address in ("tiny", "a/b@", "a/b@x y", "https://huggingface.co/a/b"):
        with pytest.raises(InvalidInputError, match=r"is no repository of the hub .write OWNER/NAME@COMMIT"):
            declare(workspace, address)
    with pytest.raises(InvalidInputError, match="cannot be an id"):
        declare(workspace, target_id="../new")
    with pytest.raises(InvalidInputError, match="exists already"):
        declare(workspace, target_id="tiny")
    hub.hold(**CHAT)
    config = hub.folder / "config.json"
    config.write_text('{"model_type": "t5", "is_encoder_decoder": true}')
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        declare(workspace)
    config.write_text('{"model_type": "unheard_of"}')
    with pytest.raises(MissingDataError, match="cannot be opened as a model"):
        declare(workspace)
    config.unlink()
    (hub.folder.parent / "hub" / COMMIT / "config.json").unlink()
    with pytest.raises(MissingDataError, match=r"has no config\.json"):
        declare(workspace)
    assert [path.name for path in (workspace.root / "drafts").iterdir()] == ["tiny"]


def test_an_existing_recipe_is_not_overwritten(workspace, hub):
    hub.hold(**CHAT)
    own = workspace.root / "drafts" / "new" / "ngram.yaml"
    own.parent.mkdir()
    own.write_text("mine")
    with pytest.raises(InvalidInputError, match="exists already"):
        declare(workspace)
    assert [*own.parent.iterdir()] == [own]
    assert own.read_text() == "mine"


def test_a_folder_of_the_workspace_is_declared_and_its_recipes_are_built(workspace):
    folder = save_repository(workspace.root / "models" / "own", "qwen3", **CHAT)
    found = target_from_folder(workspace, "new", folder, "Ann")
    corpus = next(path for path in found.files if path.parent.name == "corpora")
    corpus.write_text(
        corpus.read_text().replace("240000", "1000").replace("sequence_tokens: 256", "sequence_tokens: 64")
    )
    assert workspace.target("new").source.path == "models/own"
    names = ("ngram", "suffix", "early-exit-2", "eagle3-vocab8k")
    arms = build(workspace, "new", names)
    assert [(arm.recipe.id, arm.failure) for arm in arms] == [(name, None) for name in names]


def test_a_folder_outside_of_the_workspace_is_refused(workspace, tmp_path, monkeypatch):
    folder = save_repository(tmp_path / "elsewhere" / "own", **CHAT)
    with pytest.raises(InvalidInputError, match="DRAFTRANK_DATA"):
        target_from_folder(workspace, "new", folder, "Ann")
    monkeypatch.setenv("DRAFTRANK_DATA", str(tmp_path / "elsewhere"))
    target_from_folder(workspace, "new", folder, "Ann")
    assert workspace.target("new").source.path == "own"
    with pytest.raises(InvalidInputError, match="is not a folder"):
        target_from_folder(workspace, "none", workspace.root / "none", "Ann")
    odd = folder.rename(folder.with_name("own@2"))
    with pytest.raises(InvalidInputError, match=r"cannot be declared: 'own@2'"):
        target_from_folder(workspace, "odd", odd, "Ann")
