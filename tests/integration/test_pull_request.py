"""From a branch with a new recipe to the rendered page, by the scripts of `ci/` alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from commands import draftrank, several
from draftrank.catalog.workspace import Workspace
from draftrank.measure.records import SessionResult
from draftrank.store.bundle import part_of, publish, read_bundle
from draftrank.store.store import Store
from draftrank.workflows.submit import submit
from forging import version_2
from workspaces import RECIPE, SUITE, TARGET

ROOT = Path(__file__).parents[2]


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", *identity, "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def script(name: str, workspace: Path, *arguments: str, code: int = 0) -> str:
    """What a script of `ci/` prints on both streams."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("DRAFTRANK_", "GIT_"))}
    done = subprocess.run(
        ["bash", str(ROOT / "ci" / f"{name}.sh"), *arguments],
        env={**clean, "DRAFTRANK_WATCH": "off", "WORKSPACE": str(workspace), "PYTHON": sys.executable},
        cwd=workspace.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def published(measured, tmp_path_factory) -> Path:
    """A repository whose main branch has published results. Not to be changed."""
    root = Path(shutil.copytree(measured[0], tmp_path_factory.mktemp("published") / "workspace"))
    assert draftrank(root, "publish").code == 0
    (root / ".gitignore").write_text(".draftrank/\nmodels/\n")
    git(root, "init", "-q", "-b", "main")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "start")
    git(root, "checkout", "-q", "-b", "deeper")
    return root


@pytest.fixture
def base(published, tmp_path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(published, tmp_path / "workspace", symlinks=True))


def add_recipe(root: Path, draft: str = "ngram-long", max_ngram: int = 5) -> Path:
    path = root / "drafts" / "tiny" / f"{draft}.yaml"
    path.write_text(
        RECIPE.replace("id: ngram", f"id: {draft}").replace("max_ngram: 3", f"max_ngram: {max_ngram}")
    )
    assert draftrank(root, "check", "--fix", str(path)).code == 0
    return path


def commit(root: Path) -> None:
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "work")


def test_a_branch_goes_from_its_recipe_to_the_page(base, tmp_path):
    add_recipe(base)
    commit(base)

    script("select", base, "main", str(tmp_path / "selection.json"))
    selection = json.loads((tmp_path / "selection.json").read_text())
    assert selection["to_measure"] == [
        {"target": "tiny", "draft": "ngram-long", "reason": "the recipe is new"}
    ]
    assert selection["bundles"] == []

    script("bench", base, "main", str(tmp_path / "bundles"), "--incumbents", "1")
    (new,) = (tmp_path / "bundles").rglob("*.json")
    assert {arm.id for arm in read_bundle(new).session.arms if arm.kind == "draft"} > {"ngram-long"}

    script(
        "comment",
        base,
        str(tmp_path / "bundles"),
        str(tmp_path / "comment.md"),
        str(tmp_path / "selection.json"),
    )
    table = (tmp_path / "comment.md").read_text()
    (row,) = [line for line in table.splitlines() if line.startswith("| `")]
    assert row.startswith("| `ngram-long` |")
    assert re.search(r"faster|slower|can't tell|not ranked", row)

    # The pull request is merged with the result that was measured for it.
    place = base / "leaderboard" / "results" / new.relative_to(tmp_path / "bundles")
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(new, place)
    commit(base)
    script("publish", base, "main", str(tmp_path / "site"))
    page = tmp_path / "site" / "drafts" / "tiny" / "ngram-long" / "index.html"
    assert "max_ngram" in page.read_text()


def test_a_forged_result_is_not_published(base, tmp_path):
    result = next((base / "leaderboard" / "results").rglob("*.json"))
    forged = version_2(part_of(read_bundle(result), {"ngram"}))
    for trial in forged["trials"]:
        if trial["arm"] == "ngram":
            trial["decode_s"] /= 2
    forged["session"]["id"] += "x"
    add_recipe(base)
    twin = result.with_name(result.name.replace(result.stem[-8:], "00000000"))
    twin.write_text(json.dumps(forged))
    commit(base)
    said = script("publish", base, "main", str(tmp_path / "site"), code=1)
    assert twin.name in said
    assert not (tmp_path / "site").exists()


def test_a_changed_or_removed_result_is_refused(base, tmp_path):
    (first,) = (base / "leaderboard" / "results").rglob("*.json")
    second = first.with_name("2026-03-01-00000000.json")
    shutil.copy(first, second)
    commit(base)
    git(base, "branch", "-f", "main")
    first.write_text(first.read_text() + "\n")
    second.unlink()
    commit(base)
    said = script("select", base, "main", str(tmp_path / "selection.json"), code=2)
    assert "a published result was changed" in said
    assert "a published result was removed" in said


def test_words_alone_are_nothing_to_measure(base):
    path = base / "drafts" / "tiny" / "ngram.yaml"
    path.write_text(path.read_text().replace("title: N-grams", "title: Other words") + "# and a comment\n")
    commit(base)
    said = draftrank(base, "changed", "--since", "main", "--json")
    assert said.code == 0
    assert said.json["to_measure"] == said.json["drafts"] == []
    assert "nothing that is measured differs" in said.out


def test_a_changed_target_has_all_its_drafts_measured_again(base):
    path = base / "drafts" / "tiny" / "target.yaml"
    path.write_text(path.read_text().replace("prompt_format: completion", "prompt_format: chat"))
    (base / "drafts" / "tiny" / "shallow.yaml").unlink()
    commit(base)
    found = draftrank(base, "changed", "--since", "main", "--json").json
    assert found["targets"] == ["tiny"]
    assert found["removed"] == [["tiny", "shallow"]]
    assert [one["draft"] for one in found["to_measure"]] == ["early-exit", "int8", "ngram"]


def test_a_changed_task_changes_its_suites(base):
    path = base / "tasks" / "small.yaml"
    path.write_text(path.read_text().replace("max_new_tokens: 12", "max_new_tokens: 13"))
    commit(base)
    found = draftrank(base, "changed", "--since", "main", "--json").json
    assert (found["tasks"], found["suites"], found["to_measure"]) == (["small"], ["quick"], [])


def test_a_revision_that_is_none_is_named(published):
    revisions = ("nowhere", "--output=x", "main; id", "")
    for outcome in several(published, *(["changed", "--since", revision] for revision in revisions)):
        assert outcome.code == 2
        assert "no revision" in outcome.err


def test_a_submission_has_its_bundle_and_its_text(base):
    add_recipe(base)
    early = draftrank(base, "submit", "ngram-long")
    assert early.code == 2
    assert "no finished session measured this recipe" in early.err
    assert draftrank(base, "run", "--draft", "ngram-long", "--draft", "ngram").code == 0
    done = draftrank(base, "submit", "ngram-long", "--json")
    assert done.code == 0
    recipe, bundle = done.json["files"]
    assert recipe == "drafts/tiny/ngram-long.yaml"
    assert bundle.startswith("leaderboard/results/tiny/")
    assert (base / bundle).is_file()
    assert done.json["title"] == "Draft for tiny: ngram-long"
    assert "| `ngram-long` |" in done.json["text"]
    assert "- [ ]" in done.json["text"]


def test_a_submission_has_what_was_declared_anew(base, monkeypatch):
    """A target, a suite and a task of its own: without them nobody can measure the recipe."""
    monkeypatch.setattr("draftrank.workflows.submit.require_times", lambda *_: None)  # of a busy machine
    folder = base / "drafts" / "other"
    folder.mkdir()
    (folder / "target.yaml").write_text(TARGET.replace("id: tiny", "id: other"))
    (folder / "ngram.yaml").write_text(RECIPE.replace("target: tiny", "target: other"))
    (base / "tasks" / "prompts" / "own.jsonl").write_bytes(
        (base / "tasks" / "prompts" / "small.jsonl").read_bytes()
    )
    task = (base / "tasks" / "small.yaml").read_text().replace("small", "own")
    (base / "tasks" / "own.yaml").write_text(task)
    (base / "tasks" / "suites" / "both.yaml").write_text(
        SUITE.replace("quick", "both").replace("repeats: 2", "  - task: own\nrepeats: 1")
    )
    assert draftrank(base, "check", "--fix").code == 0
    assert draftrank(base, "run", "other", "--draft", "ngram", "--suite", "both").code == 0

    def listed() -> list[str]:
        workspace = Workspace.open(base)
        with Store.open(workspace.store_url) as store:
            found = submit(workspace, "other", "ngram", store)
        paths = (*found.recipe, *found.declared, *found.bundles)
        return [workspace.display(path) for path in paths]

    recipe, *declared, bundle = listed()
    assert (recipe, bundle.rpartition("/")[0].rpartition("/")[0]) == (
        "drafts/other/ngram.yaml",
        "leaderboard/results/other",
    )
    assert declared == [
        "drafts/other/target.yaml",
        "tasks/suites/both.yaml",
        "tasks/own.yaml",
        "tasks/prompts/own.jsonl",
    ]
    git(base, "add", *declared)
    assert listed() == [recipe, *declared, bundle], "staged is not committed"
    commit(base)
    assert listed() == [recipe, bundle]
    target = folder / "target.yaml"
    target.write_text(target.read_text() + "# another word\n")
    assert listed() == [recipe, "drafts/other/target.yaml", bundle]
    shutil.rmtree(base / ".git")
    assert set(listed()) == {recipe, *declared, "tasks/small.yaml", "tasks/prompts/small.jsonl", bundle}


def test_a_search_alone_is_no_submission(base):
    add_recipe(base)
    assert draftrank(base, "run", "--draft", "ngram-long", "--draft", "ngram").code == 0
    with Store.open(Workspace.open(base).store_url) as store:
        found = store.result(store.sessions()[-1].id)
        searched = found.session.model_copy(update={"suite": "quick-search"})
        store.delete_session(searched.id)
        store.add_result(found.model_copy(update={"session": searched}))
    refused, named = several(
        base, ["submit", "ngram-long"], ["submit", "ngram-long", "--session", searched.id, "--json"]
    )
    assert refused.code == 2
    told = f"but for {searched.id} of `draftrank search`"
    assert told in " ".join(refused.err.split())
    assert "measured this recipe" not in named.err  # its times may be those of a busy machine


@pytest.mark.parametrize(("printed", "code"), [("moved tiny ngram", 1), ("holds tiny ngram", 2)])
def test_a_night_that_could_not_measure_is_no_figure_that_moved(tmp_path, printed, code):
    command = tmp_path / "python"
    command.write_text(f"#!/bin/sh\necho '{printed}'\nexit 1\n")
    command.chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "ci" / "nightly.sh"), str(tmp_path / "bundles")],
        env={**os.environ, "WORKSPACE": str(tmp_path), "PYTHON": str(command)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (code, f"{printed}\n")


def test_figures_of_another_minor_version_are_not_measured_again(base):
    results = base / "leaderboard" / "results"
    (path,) = results.rglob("*.json")
    found = read_bundle(path)
    path.unlink()
    session = found.session.model_copy(update={"draftrank_version": "0.2.0"})
    publish(SessionResult(session=session, trials=found.trials), results)
    done = draftrank(base, "remeasure", "--json")
    assert (done.code, done.json) == (0, {"drafts": [], "files": []})


def test_published_figures_are_measured_again(base, tmp_path):
    leads = any(row["ranked"] for row in draftrank(base, "board", "--json").json["rows"])
    done = draftrank(base, "remeasure", "--drafts", "1", "--out", str(tmp_path / "again"), "--json")
    if not leads:  # a busy machine's session may rank nothing
        assert (done.code, done.json) == (0, {"drafts": [], "files": []})
        return
    assert len(done.json["files"]) == 1
    for one in done.json["drafts"]:
        assert one["moved"] == (done.code == 1)
        assert one["published"] > 0
        assert one["now"] > 0
