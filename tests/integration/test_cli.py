"""The command's manners: help, JSON, exit codes, and every kind of wrong input."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from commands import HEAVY, draftrank, several
from draftrank.catalog.formatting import format_file
from draftrank.catalog.workspace import Workspace
from draftrank.cli.main import COMMANDS
from draftrank.version import __version__
from tiny_workspace import write_tiny_workspace
from workspaces import RECIPE, TARGET, TASK, write_prompts, write_workspace


@pytest.fixture
def root(tmp_path):
    """A canonical workspace whose target has no weights: enough for all that loads no model."""
    folder = write_workspace(tmp_path / "workspace")
    for path, model in Workspace.open(folder).declaration_paths():
        format_file(path, model)
    return folder


def test_every_command_explains_itself_with_an_example(root):
    general, *pages = several(root, ["--help"], *([name, "--help"] for name in COMMANDS))
    assert general.code == 0
    for name, page in zip(COMMANDS, pages, strict=True):
        assert page.code == 0
        assert f"Example: draftrank {name}" in page.out
        assert name in general.out
        assert "--json" in page.out


def test_the_installed_module_answers(root):
    assert draftrank(root, "--version").out == f"draftrank {__version__}\n"
    assert draftrank(root).code == 2


def test_light_commands_never_load_a_tensor_library(measured_root):
    session = several(measured_root, ["show", "--json"])[0].json["sessions"][0]["id"]
    commands = [
        ["--help"],
        ["run", "--help"],
        ["check"],
        *(
            ["list", what]
            for what in ("drafts", "targets", "tasks", "suites", "steps", "proposers", "sources")
        ),
        ["new", "draft", "mine"],
        ["new", "task", "ours"],
        ["board"],
        ["compare", "ngram", "shallow"],
        ["show"],
        ["show", "ngram"],
        ["show", session],
        ["site", "--out", "pages"],
        ["publish"],
        ["import", "leaderboard/results"],
    ]
    *light, heavy = several(measured_root, *commands, ["doctor"], fresh=True)
    for command, outcome in zip(commands, light, strict=True):
        assert outcome.code == 0, (command, outcome.err)
        assert outcome.heavy == (), command
    assert set(heavy.heavy) <= set(HEAVY)
    assert heavy.heavy, "the test sees what is loaded: doctor asks torch for its threads"


def test_json_is_the_last_line_of_every_command(measured_root):
    wanted = {
        "build": ({"drafts"}, ["tiny", "-d", "ngram"]),
        "list": ({"drafts"}, []),
        "check": ({"files", "rewritten", "problems"}, []),
        "new": ({"file", "files", "open_questions"}, ["task", "ours"]),
        "board": ({"rows", "boards", "schema_version"}, []),
        "show": ({"session", "arms"}, ["ngram"]),
        "compare": ({"session", "tasks"}, ["ngram", "baseline"]),
        "site": ({"index", "sessions"}, []),
        "publish": ({"session", "files"}, []),
        "import": ({"files"}, ["leaderboard/results"]),
        "export": ({"forms", "without"}, ["shallow", "--to", "exported"]),
        "doctor": ({"findings"}, []),
    }
    # These have tests of their own, since they measure or ask git.
    measuring = {"run", "sweep", "status", "tune-k", "search", "predict", "verify", "remeasure", "parity"}
    measuring |= {"serve-bench"}
    elsewhere = measuring | {"changed", "challenge", "comment", "submit", "keep"}
    assert {*wanted, *elsewhere} == set(COMMANDS)
    outcomes = several(measured_root, *([name, *rest, "--json"] for name, (_, rest) in wanted.items()))
    for (name, (keys, _)), outcome in zip(wanted.items(), outcomes, strict=True):
        assert outcome.code == 0, (name, outcome.err)
        assert keys <= outcome.json.keys()


def test_json_says_why_a_check_failed_and_still_comes_last(root):
    (root / "drafts" / "tiny" / "ngram.yaml").write_text(RECIPE.replace("max_ngram", "max_gram"))
    (outcome,) = several(root, ["check", "--json"])
    assert outcome.code == 1
    (problem,) = outcome.json["problems"]
    assert problem == {
        "message": "is not a known field",
        "file": "drafts/tiny/ngram.yaml",
        "line": 10,
        "field": "draft.max_gram",
        "fix": "did you mean 'max_ngram'?",
    }
    assert "drafts/tiny/ngram.yaml:10: draft.max_gram: is not a known field" in outcome.err


WRONG_USE = [
    (["nonsense"], "No such command"),
    (["run", "--nonsense"], "No such option"),
    (["run", "huge"], "there is no target 'huge' (known: tiny)"),
    (["run", "tyni"], "did you mean 'tiny'?"),
    (["submit", "ngram", "--target", "tyni"], "there is no target 'tyni' (did you mean 'tiny'?)"),
    (["submit", "ngram"], "(measure it: draftrank run tiny --draft ngram)"),
    (["run", "tiny", "--draft", "mgram"], "did you mean 'ngram'?"),
    (["run", "--suite", "nope"], "there is no suite 'nope' (known: quick)"),
    (["run", "--task", "nope"], "there is no task 'nope' (known: small)"),
    (["run", "--dtype", "int3"], "int3"),
    (["run", "--device", "tpu"], "tpu"),
    (["run", "--backend", "torch"], "torch"),
    (["run", "--native"], "No such option"),
    (["run", "--dtype", "gguf"], "gguf"),
    (["run", "--temperature", "-1"], "--temperature"),
    (["run", "--temperature", "hot"], "--temperature"),
    (["run", "--top-p", "0"], "--top-p"),
    (["run", "--top-k", "0"], "--top-k"),
    (["run", "--temperature", "0.0005"], "--temperature: 0.0005 is too small to divide by"),
    (["run", "--top-p", "0.9"], "--top-p and --top-k: change nothing in greedy decoding"),
    (["tune-k", "ngram", "--temperature", "0.0005"], "--temperature: 0.0005 is too small to divide by"),
    (["run", "--temperature", "nan"], "--temperature"),
    (["run", "--temperature", "0.7", "--top-p", "nan"], "--top-p"),
    (["run", "--budget", "1s", "--target-ci", "nan"], "--target-ci"),
    (["tune-k", "ngram", "--confidence", "nan"], "nan is no finite number"),
    (["sweep", "--memory", "inf"], "inf is no finite number"),
    (["serve-bench", "tiny", "--server", "s", "--rate", "inf"], "inf is no finite number"),
    (["serve-bench", "tiny", "--server", "s", "--idle", "inf"], "inf is no finite number"),
    (["run", "--repeats", "0"], "--repeats"),
    (["run", "--target-ci", "0"], "--target-ci"),
    (["run", "--budget", "soon"], "'soon' is no duration (write a number and s, m or h, e.g. 30m)"),
    (["run", "--budget", "0h"], "is no duration"),
    (["run", "--seed", "-1"], "--seed"),
    (["run", "--seed", str(2**53)], "--seed"),
    (["serve-bench", "tiny", "--server", "s", "--seed", str(2**64)], "--seed"),
    (["serve-bench", "tiny", "--server", "s", "--rounds", str(2**64)], "--rounds"),
    (["run", "-w", "elsewhere"], "elsewhere: is not a workspace"),
    (["sweep", "--limit", "soon"], "--limit: 'soon' is no duration"),
    (
        ["sweep", "--executor", "inline", "--memory", "8"],
        "--memory and --limit: are for jobs in processes of",
    ),
    (["sweep", "--executor", "ray", "--limit", "2h"], "--memory and --limit: are for jobs in processes of"),
    (["sweep", "--address", "10.0.0.1:6379"], "--address: is of a Ray cluster"),
    (["build", "huge"], "there is no target 'huge'"),
    (["build", "tiny", "-d", "x"], "there is no draft 'x'"),
    (["list", "models"], "models"),
    (["list", "--target", "huge"], "there is no target 'huge'"),
    (["check", "no/such.yaml"], "is not a declaration of this workspace"),
    (["check", "../outside.yaml"], "is not a declaration of this workspace"),
    (["new", "model", "x"], "model"),
    (["new", "draft", "../x"], "cannot be an id"),
    (["new", "draft", "Big"], "cannot be an id"),
    (["new", "draft", "ngram"], "exists already"),
    (["new", "draft", "x", "--target", "huge"], "there is no target 'huge'"),
    (["new", "draft", "x", "--author", "two\nlines"], "cannot be an author's name"),
    (["new", "task", "small"], "exists already"),
    (["new", "task", "x", "--target", "tiny"], "only a draft or a corpus is for a target"),
    (["new", "task", "x", "--from-hub", "a/b"], "takes one of --from-hub and --from-folder"),
    (["new", "target", "x"], "takes one of --from-hub and --from-folder"),
    (["new", "target", "x", "--from-hub", "a/b", "--from-folder", "c"], "takes one of --from-hub"),
    (["new", "target", "x", "--from-hub", "a"], "'a' is no repository of the hub"),
    (["new", "target", "tiny", "--from-hub", "a/b"], "exists already"),
    (["new", "target", "x", "--from-folder", "nowhere"], "is not a folder"),
    (["board", "--target", "huge"], "there is no target 'huge'"),
    (["board", "--suite", "nope"], "there is no suite 'nope'"),
    (["show", "nope"], "no result is called 'nope'"),
    (["show", "--target", "huge"], "there is no target 'huge'"),
    (["publish"], "there is no finished session"),
    (["publish", "nope"], "there is no finished session nope"),
    (["site", "--out", "drafts/tiny/ngram.yaml"], "is not a folder"),
    (["site", "--url", "example.org"], "begin it with https://"),
    (["verify", "tasks/small.yaml", "no.json"], "no.json: is not a file"),
    (["import", "no.json"], "no.json: is not a file"),
    (["import", "tasks/small.yaml"], "is not valid JSON"),
    (["import", "tasks"], "tasks: holds no .json file"),
]


def test_wrong_use_is_named_and_exits_with_two(root):
    outcomes = several(root, *(command for command, _ in WRONG_USE))
    for (command, message), outcome in zip(WRONG_USE, outcomes, strict=True):
        assert outcome.code == 2, (command, outcome)
        # The frame around a message may break its lines.
        told = " ".join(outcome.err.replace("│", " ").split())
        assert " ".join(message.split()) in told, (command, told)


def test_outside_of_a_workspace_the_command_says_where_to_go(tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    (outcome,) = several(folder, ["list", "--workspace", "."])
    assert outcome.code == 2
    assert "name a folder with drafts/ and tasks/" in outcome.err


def test_a_place_that_cannot_be_written_is_an_error_without_a_traceback(root):
    (root / "wall").write_text("a file where a folder is wanted")
    site = draftrank(root, "site", "--out", "wall/site")
    assert (site.code, "wall" in site.err) == (1, True)
    store = draftrank(root, "import", "tasks/small.yaml", DRAFTRANK_STATE="wall")
    assert store.code == 1
    assert "wall/results.sqlite" in store.err


def test_all_problems_of_all_files_are_named_at_once(root):
    recipes, tasks = root / "drafts" / "tiny", root / "tasks"
    files = {
        "unknown-field": RECIPE.replace("  max_ngram: 3", "  max_gram: 3"),
        "wrong-type": RECIPE.replace("max_ngram: 3", "max_ngram: many"),
        "unknown-step": RECIPE.replace(
            "kind: ngram\n  max_ngram: 3", "kind: draft_model\n  steps: [{kind: drop}]"
        ),
        "unknown-target": RECIPE.replace("target: tiny", "target: huge"),
        "zero-k": RECIPE.replace("tokens: 3", "tokens: 0"),
        "other-id": RECIPE,
        "python-tag": RECIPE.replace("title: N-grams", "title: !!python/object/apply:os.getcwd []"),
        "no-yaml": "id: [",
        "empty": "",
    }
    for name, text in files.items():
        text = text if name == "other-id" else text.replace("id: ngram", f"id: {name}")
        (recipes / f"{name}.yaml").write_text(text)
    good = (tasks / "small.yaml").read_text()
    digits = good.split("sha256: ")[1][:64]
    data = {
        "wrong-hash": good.replace(digits, "0" * 64),
        "outside": good.replace("tasks/prompts/small.jsonl", "../secret.jsonl"),
        "unpinned": good.replace(f"  sha256: {digits}\n", ""),
    }
    for name, text in data.items():
        (tasks / f"{name}.yaml").write_text(text.replace("id: small", f"id: {name}"))
    (root / "drafts" / "prose").mkdir()
    (root / "drafts" / "prose" / "target.yaml").write_text(
        TARGET.replace("id: tiny", "id: prose").replace(
            "kind: local\n  path: models/tiny", "kind: inline\n  prompts: [{turns: [hello]}]"
        )
    )
    (outcome,) = several(root, ["check", "--json"])
    assert outcome.code == 1
    found = {}
    for problem in outcome.json["problems"]:
        assert problem["fix"], problem
        found.setdefault(problem["file"].rsplit("/", 1)[-1].removesuffix(".yaml"), []).append(problem)
    where = {name: (problems[0]["field"], problems[0]["line"]) for name, problems in found.items()}
    assert where == {
        "unknown-field": ("draft.max_gram", 10),
        "wrong-type": ("draft.max_ngram", 10),
        "unknown-step": ("draft.steps.0.kind", 10),
        "unknown-target": ("target", None),
        "zero-k": ("speculate.num_speculative_tokens", 12),
        "other-id": ("id", 3),
        "python-tag": ("title", 5),
        "no-yaml": (None, 1),
        "empty": (None, None),
        "wrong-hash": ("source.sha256", 9),
        "outside": ("source.path", 8),
        "unpinned": ("source", 6),
        "target": ("source", 5),
    }
    assert {len(problems) for problems in found.values()} == {1}


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("", "holds no prompts"),
        ("\n\n", "holds no prompts"),
        ('{"id": "one", "turns": ["a"]}\n{"id": "two", "tu', "the line is cut off"),
        ("[1]\n", "the line is not a JSON object"),
        ('{"id": "one"}\n', "the row has no field 'turns'"),
        ('{"id": "one", "turns": []}\n', "is not a list of texts"),
        ('{"id": "a", "turns": ["x"]}\n{"id": "a", "turns": ["y"]}\n', "stands twice"),
    ],
)
def test_bad_task_data_is_named_by_check_and_stops_a_run(root, rows, told):
    write_prompts(root, rows)
    check, run = several(root, ["check"], ["run"])
    assert check.code == 1
    assert told in check.err
    assert run.code == 2
    assert told in run.err
    assert not (root / ".draftrank" / "cache" / "targets").exists()


def test_a_changed_data_file_stops_a_run(root):
    with (root / "tasks" / "prompts" / "small.jsonl").open("a") as stream:
        stream.write('{"id": "more", "turns": ["a"]}\n')
    (outcome,) = several(root, ["run"])
    assert outcome.code == 2
    assert "sha256 does not match" in outcome.err


def test_a_target_without_its_weights_is_a_failure_that_says_what_to_do(root):
    (outcome,) = several(root, ["run"])
    assert outcome.code == 1
    assert "DRAFTRANK_DATA" in outcome.err


def test_fix_writes_the_canonical_form_once(tmp_path):
    root = write_workspace(tmp_path)
    recipe = root / "drafts" / "tiny" / "ngram.yaml"
    recipe.write_text(
        '{"id": "ngram", "schema_version": 1, "target": "tiny", "title": "T", "authors": [{"name": "A"}],'
        ' "draft": {"kind": "ngram"}, "speculate": {"num_speculative_tokens": 2}}'
    )
    before, fixed, again, after = several(
        root, ["check"], ["check", "--fix", "--json"], ["check", "--fix", "--json"], ["check"]
    )
    assert before.code == 1
    assert "draftrank check --fix" in before.err
    assert fixed.code == 0
    assert "drafts/tiny/ngram.yaml" in fixed.json["rewritten"]
    assert again.json["rewritten"] == []
    assert after.code == 0
    lines = recipe.read_text().splitlines()
    assert lines[0].startswith("# yaml-language-server: $schema=")
    assert lines[1:3] == ['"schema_version": 1', '"id": "ngram"']


def test_fix_leaves_a_broken_file_alone_and_mends_the_others(root):
    broken, messy = root / "drafts" / "tiny" / "broken.yaml", root / "drafts" / "tiny" / "ngram.yaml"
    text = RECIPE.replace("id: ngram", "id: broken").replace("tokens: 3", "tokens: 0")
    broken.write_text(text)
    messy.write_text(messy.read_text().replace("kind: ngram", "kind:   ngram"))
    (outcome,) = several(root, ["check", "--fix", "--json"])
    assert outcome.code == 1
    assert outcome.json["rewritten"] == ["drafts/tiny/ngram.yaml"]
    assert broken.read_text() == text


def test_fix_never_changes_what_a_prompt_says(root):
    task = TASK.replace("id: small", "id: spaces").split("source:")[0]
    task += "source:\n    kind: inline\n    prompts:\n    - turns:\n        - |\n          two blanks at the end  \n"
    path = root / "tasks" / "spaces.yaml"
    path.write_text(task)
    fixed, after = several(root, ["check", "--fix"], ["check"])
    assert (fixed.code, after.code) == (0, 0)
    assert "two blanks at the end  \n" in path.read_text()


def test_new_declarations_pass_their_check_and_are_listed(root):
    names = ["depth8", "123", "null", "1e5", "2026-01-01"]  # some would be no text if they were not quoted
    *started, checked, drafts, tasks = several(
        root,
        *(["new", "draft", name, "--author", "Ann: the # [first]", "--json"] for name in names),
        *(["new", "task", name] for name in names),
        ["check"],
        ["list", "--json"],
        ["list", "tasks", "--json"],
    )
    assert {outcome.code for outcome in started} == {0}
    assert started[0].json["file"] == str(root / "drafts" / "tiny" / "depth8.yaml")
    assert checked.code == 0, checked.err
    assert {*names, "ngram"} == {row["draft"] for row in drafts.json["drafts"]}
    assert {*names, "small"} == {row["task"] for row in tasks.json["tasks"]}


def test_a_target_from_a_folder_is_declared_and_lists_what_it_leaves_open(measured_root):
    started, checked, listed = several(
        measured_root,
        ["new", "target", "again", "--from-folder", "models/tiny", "--json"],
        ["check"],
        ["list", "--target", "again", "--json"],
    )
    assert started.code == 0, started.err
    assert "written: drafts/again/target.yaml" in started.out
    assert "to be decided: the tokenizer has no chat template" in started.out
    assert started.json["files"][0] == str(measured_root / "drafts" / "again" / "target.yaml")
    assert len(started.json["open_questions"]) == started.out.count("to be decided: ")
    assert checked.code == 0, checked.err
    assert {row["draft"] for row in listed.json["drafts"]} == {"ngram", "suffix", "early-exit-1"}


def test_a_target_of_the_hub_without_a_network_is_a_failure_in_one_sentence(root):
    (outcome,) = several(root, ["new", "target", "x", "--from-hub", "a/b"], DRAFTRANK_OFFLINE="1")
    assert outcome.code == 1
    (line,) = outcome.err.strip().splitlines()[-1:]
    assert line.startswith("error: a/b@main could not be fetched from the hub")
    assert "Traceback" not in outcome.err


def test_text_of_a_declaration_is_never_markup(root):
    recipe = root / "drafts" / "tiny" / "ngram.yaml"
    recipe.write_text(recipe.read_text().replace("title: N-grams", 'title: "[/red] :tada: [bold]é"'))
    (outcome,) = several(root, ["list", "--json"])
    assert outcome.code == 0
    assert "[/red] :tada: [bold]é" in outcome.out.splitlines()[1]
    assert outcome.json["drafts"][0]["title"] == "[/red] :tada: [bold]é"


def test_a_reader_that_leaves_early_is_no_failure_to_complain_about(root):
    command = f"{json.dumps(sys.executable)} -m draftrank list steps | head -c 1"
    done = subprocess.run(["bash", "-c", command], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout == "k"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("architecture", "code", "says"),
    [
        ("recurrent_gemma", 1, "'recurrent_gemma' is not supported: it keeps a state outside of a cache"),
        ("mamba2", 2, "drafts/tiny/target.yaml: context_window: "),
        ("bloom", 2, "drafts/tiny/target.yaml: context_window: "),
    ],
)
def test_a_target_that_cannot_be_run_ends_in_one_sentence(tmp_path, architecture, code, says):
    found = draftrank(write_tiny_workspace(tmp_path, architecture), "run", "--draft", "ngram")
    assert found.code == code
    assert says in found.err
    assert "Traceback" not in found.err
    assert not found.out
