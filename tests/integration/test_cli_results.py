"""From `draftrank run` to a board, a site, bundles and back, through the real command."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from builders import MACHINE, arm_of, draft_first, result, slowed
from commands import MAX_S, draftrank, several, start
from draftrank.catalog.workspace import Workspace
from draftrank.measure.machine.fingerprint import read_machine
from draftrank.measure.statistics.stopping import spent_s
from draftrank.store.bundle import publish, read_bundle
from draftrank.store.store import Store
from forging import forge
from workspaces import write_draft

ARMS = ["early-exit", "int8", "ngram", "shallow"]


def test_a_run_ranks_every_draft_and_its_board_has_the_documented_form(measured):
    root, ran = measured
    assert ran.code == 0
    (board,) = several(root, ["board", "--json"])
    assert board.code == 0
    assert board.json["rows"] == ran.json["rows"]
    assert sorted(row["draft"] for row in board.json["rows"]) == ARMS
    for row in board.json["rows"]:
        assert row["ranked"] == (row["rank"] is not None) == (row["reason"] is None)
        if row["ranked"]:
            low, high = row["rank"]
            assert 1 <= low <= high <= len(ARMS)
        low, high = row["ci"]
        assert 0 < low <= high
        assert row["speedup"] > 0
        assert 1 <= row["acceptance_length"] <= 4
        assert row["draft_cost"] > 0
        assert row["tokens_per_second"] > 0


def test_no_figure_is_cut_off_where_there_is_no_terminal(measured):
    _, ran = measured
    header = next(line for line in ran.out.splitlines() if "speedup" in line.split())
    assert " ".join(header.split()[-11:]) == "draft k speedup 95 % interval accept cost tok/s small output"
    assert "…" not in ran.out


def test_progress_goes_to_standard_error_and_says_how_far_it_is(measured):
    _, ran = measured
    assert "build drafts: 100%" in ran.err
    assert "measure: 100%" in ran.err
    assert "measure:" not in ran.out


def test_a_second_run_builds_and_measures_nothing(measured_root, measured):
    again = draftrank(measured_root, "run", "--json")
    assert again.code == 0
    assert again.json == measured[1].json
    assert f"session {again.json['session']} has measured this already" in again.err
    assert "step 1" not in again.err


def test_show_tells_all_of_a_draft_of_a_session_and_of_all_sessions(measured):
    root, ran = measured
    session = ran.json["session"]
    draft, whole, sessions = several(
        root, ["show", "shallow", "--json"], ["show", session, "--json"], ["show", "--json"]
    )
    assert [arm["arm"]["id"] for arm in draft.json["arms"]] == ["shallow"]
    assert {arm["arm"]["id"] for arm in whole.json["arms"]} == {*ARMS, "baseline", "baseline-control"}
    assert [entry["id"] for entry in sessions.json["sessions"]] == [session]
    row = next(row for row in ran.json["rows"] if row["draft"] == "shallow")
    assert draft.json["arms"][0]["speedup"]["value"] == row["speedup"]
    assert row["weights_sha256"] in draft.out


def test_compare_says_which_draft_is_faster_or_that_it_cannot_tell(measured):
    root, ran = measured
    found, swapped, itself, unknown, elsewhere, nowhere = several(
        root,
        ["compare", "ngram", "shallow", "--target", "tiny", "--json"],
        ["compare", "shallow", "ngram", "--session", ran.json["session"], "--json"],
        ["compare", "ngram", "ngram"],
        ["compare", "ngram", "nothing"],
        ["compare", "ngram", "baseline", "--target", "nowhere"],
        ["compare", "ngram", "shallow", "--session", "2026-01-01-nowhere"],
    )
    assert found.code == swapped.code == 0
    assert found.json["session"] == ran.json["session"]
    overall, other = found.json["overall"], swapped.json["overall"]
    assert abs(overall["value"] * other["value"] - 1) < 1e-9
    answers = {"faster": "slower", "slower": "faster", "can't tell": "can't tell"}
    assert answers[overall["answer"]] == other["answer"]
    spans = overall["interval"]["low"] <= 1 <= overall["interval"]["high"]
    assert spans == (overall["answer"] == "can't tell") == ("can't tell whether" in found.out)
    assert abs(overall["probability"] + other["probability"] - 1) < 1e-9
    assert {row["draft"] for row in ran.json["rows"] if row["reason"]} >= set(found.json["cautions"])
    assert (itself.code, unknown.code, elsewhere.code, nowhere.code) == (2, 2, 2, 2)
    assert "there is no session '2026-01-01-nowhere' (`draftrank show` lists sessions)" in nowhere.err
    assert "known: " in unknown.err


def test_published_results_give_the_same_board_without_the_store(measured_root, measured):
    rows = measured[1].json["rows"]
    published, both = several(measured_root, ["publish", "--json"], ["board", "--json"])
    files = [Path(file) for file in published.json["files"]]
    assert len(files) == 1
    assert both.json["rows"] == rows
    shutil.rmtree(measured_root / ".draftrank")
    (bundles_only,) = several(measured_root, ["board", "--json"])
    assert bundles_only.json["rows"] == rows
    moved = measured_root / "inbox"
    (measured_root / "leaderboard" / "results").rename(moved)
    nothing, imported, again, store_only, published_only = several(
        measured_root,
        ["board", "--json"],
        ["import", "inbox", "--json"],
        ["import", str(moved)],
        ["board", "--json"],
        ["board", "--published", "--json"],
    )
    assert nothing.json["rows"] == []
    assert len(imported.json["files"]) == 1
    assert again.code == 0
    assert store_only.json["rows"] == rows
    assert published_only.json["rows"] == []


def test_boards_of_this_machine_and_the_fastest_backend_come_first(workspace_root):
    here = MACHINE.model_copy(update={"machine_class": read_machine("cpu").machine_class})
    slow = slowed(result({"ngram": 1.5}, id="20261101-slow", machine=here), lambda _: 3)
    fast = result({"ngram": 1.5}, id="20261101-fast", machine=here, dtype="bf16")
    elsewhere = slowed(result({"ngram": 1.5}, id="20261101-else"), lambda _: 0.5)
    old = result({"ngram": 1.5}, id="20261101-old", machine=here, draftrank_version="0.2.5")
    with Store.open(Workspace.open(workspace_root).store_url) as store:
        for found in (old, elsewhere, slow, fast):
            store.add_result(found)
    (board,) = several(workspace_root, ["board", "--json"], fresh=True)
    sessions = [head["sessions"][0]["id"] for head in board.json["boards"]]
    assert sessions == ["20261101-fast", "20261101-slow", "20261101-else", "20261101-old"]
    assert board.out.count("archived: measured by draftrank 0.2; minor versions are not comparable") == 1
    assert board.heavy == ()


def test_a_column_without_any_figure_is_not_printed(workspace_root):
    with Store.open(Workspace.open(workspace_root).store_url) as store:
        store.add_result(result({"ngram": 1.5}, arms=[arm_of("ngram", latencies=())]))
    (board,) = several(workspace_root, ["board"])
    header = next(line for line in board.out.splitlines() if line.lstrip().startswith("rank"))
    assert "cost" not in header
    assert "tok/s" in header


def test_good_bundles_are_imported_beside_bad_ones_and_all_bad_ones_are_named(measured_root):
    inbox = measured_root / "inbox"
    with Store.open(Workspace.open(measured_root).store_url) as store:
        (whole,) = store.results()
    first, second, *others = (publish(whole, inbox, (draft,))[0] for draft in ARMS)
    first.write_text(first.read_text()[:-100])
    document = json.loads(second.read_text())
    document["trials"] = 7
    second.write_text(json.dumps(document))
    shutil.rmtree(measured_root / ".draftrank")
    imported, board = several(measured_root, ["import", "inbox"], ["board", "--json"])
    assert imported.code == 2
    assert f"{len(others)} bundles imported" in imported.err
    assert first.name in imported.err
    assert second.name in imported.err
    assert len(board.json["rows"]) == len(others)


def test_a_session_whose_seconds_leave_holes_in_the_clock_is_not_published(measured_root, tmp_path):
    (path,) = publish(draft_first(result({"ngram": 1.5})), tmp_path)
    with Store.open(Workspace.open(measured_root).store_url) as store:
        store.join_result(read_bundle(forge(path, tmp_path / "forged.json")))
    (published,) = several(measured_root, ["publish", "20261101-a"])
    assert published.code == 2
    assert "11.1% of each trial of ngram" in " ".join(published.err.split())
    assert "20261101-a" in published.err


def test_a_session_of_variants_or_of_a_search_is_published_only_by_its_id(measured_root, measured):
    later = {"created_at": "2099-01-01T10:00:00Z", "finished_at": "2099-01-01T11:00:00Z"}
    explored = {"20990101-t": "quick-tuning", "20990101-s": "quick-search"}
    with Store.open(Workspace.open(measured_root).store_url) as store:
        for name, suite in explored.items():
            found = draft_first(result({"ngram-k2": 1.5}, id=name, suite=suite, **later))
            trials = tuple(
                one.model_copy(update={"started_at": one.started_at.replace("2026-11", "2099-01")})
                for one in found.trials
            )
            store.add_result(found.model_copy(update={"trials": trials}))
    newest, named = several(measured_root, ["publish", "--json"], ["publish", "20990101-t", "--json"])
    assert newest.json["session"] == measured[1].json["session"]
    assert named.json["session"] == "20990101-t"
    with Store.open(Workspace.open(measured_root).store_url) as store:
        store.delete_session(newest.json["session"])
    (refused,) = several(measured_root, ["publish"])
    assert refused.code == 2
    assert all(name in refused.err for name in ("`tune-k` or `search`", *explored))


def test_a_published_bundle_that_was_changed_is_refused(measured_root):
    (published,) = several(measured_root, ["publish", "--json"])
    path = Path(published.json["files"][0])
    document = json.loads(path.read_text())
    document["trials"][0][document["columns"].index("decode_s")] *= 2
    path.write_text(json.dumps(document))
    (board,) = several(measured_root, ["board"])
    assert board.code == 2
    assert str(path.relative_to(measured_root)) in board.err


def test_the_site_shows_every_draft_and_can_be_rendered_again(measured_root):
    first, again = several(measured_root, ["site", "--out", "pages", "--json"], ["site", "--out", "pages"])
    assert (first.code, again.code) == (0, 0)
    index = Path(first.json["index"])
    assert index == measured_root / "pages" / "index.html"
    assert index.as_uri() in again.out
    text = index.read_text()
    for draft in ARMS:
        assert f"drafts/tiny/{draft}/index.html" in text
        assert (index.parent / "drafts" / "tiny" / draft / "index.html").is_file()
    with Store.open(index.parent / "results.sqlite") as store:
        assert {trial.arm for trial in store.results()[0].trials} >= set(ARMS)


def test_the_site_shows_the_store_or_what_is_published_where_that_is_asked(measured_root):
    local, published, both, neither = several(
        measured_root,
        ["site", "--out", "pages", "--local", "--json"],
        ["site", "--out", "pages", "--published", "--json"],
        ["site", "--out", "pages", "--json"],
        ["site", "--out", "pages", "--local", "--published"],
    )
    assert (local.json["sessions"], published.json["sessions"], both.json["sessions"]) == (1, 0, 1)
    several(measured_root, ["publish"])
    (measured_root / ".draftrank" / "results.sqlite").unlink()
    local, published = several(
        measured_root,
        ["site", "--out", "pages", "--local", "--json"],
        ["site", "--out", "pages", "--published", "--json"],
    )
    assert (local.json["sessions"], published.json["sessions"]) == (0, 1)
    assert neither.code == 2
    assert "leaves out all that --local shows" in neither.err


def test_the_same_results_give_the_same_site_byte_for_byte(measured_root, tmp_path):
    """In any workspace, process, hash seed and locale, however the results came into it."""
    more = ["run", "--draft", "ngram", "--draft", "int8", "--repeats", "1", "--temperature", "0.7"]
    several(measured_root, ["publish"], more, ["publish"])
    inbox = tmp_path / "inbox"
    (measured_root / "leaderboard" / "results").rename(inbox)
    files = sorted(map(str, inbox.rglob("*.json")))
    assert len(files) == 2
    arrivals = {
        "measured here": [],
        "the other way round, in two parts": [["import", *files[1:]], ["import", *reversed(files)]],
    }
    sites = {}
    for seed, (name, arrival) in enumerate(arrivals.items()):
        root = measured_root
        if arrival:
            root = tmp_path / name
            shutil.copytree(measured_root, root, ignore=shutil.ignore_patterns(".draftrank", "pages"))
        outcomes = several(
            root,
            *arrival,
            ["site", "--out", "pages"],
            fresh=True,
            PYTHONHASHSEED=str(seed),
            LC_ALL="C",
            TZ=f"UTC{seed}",
        )
        assert [outcome.code for outcome in outcomes] == [0] * len(outcomes)
        pages = root / "pages"
        sites[name] = {
            str(page.relative_to(pages)): hashlib.sha256(page.read_bytes()).hexdigest()
            for page in pages.rglob("*")
            if page.is_file()
        }
    one, other = sites.values()
    assert "results.sqlite" in one
    assert one == other


def test_the_site_is_served_to_this_machine_until_it_is_stopped(measured_root):
    served = start(measured_root, "site", "--out", "pages", "--serve", "--port", "0", "--no-database")
    try:
        while (told := re.search(r"serving.*(http://127\.0\.0\.1:\d+/)", served.out)) is None:
            assert served.poll() is None, served.finish()
            time.sleep(0.05)
        address = told[1]
        with urllib.request.urlopen(address + "data.html", timeout=MAX_S) as answer:
            assert b"index.schema.json" in answer.read()
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(address + "results.sqlite", timeout=MAX_S)
    finally:
        served.send_signal(signal.SIGINT)
        stopped = served.finish()
    assert "stopped" in stopped.out
    assert stopped.code == 0


def test_a_failed_draft_is_exit_code_one_and_folders_are_those_that_are_named(measured_root, tmp_path):
    too_deep = "kind: draft_model\n  steps: [{kind: drop_layers, keep: 99, select: ends}]"
    write_draft(measured_root, "too-deep", too_deep)
    shutil.rmtree(measured_root / ".draftrank")
    (tmp_path / "data").mkdir()
    (measured_root / "models").rename(tmp_path / "data" / "models")
    folders = {
        "DRAFTRANK_STATE": str(tmp_path / "state"),
        "DRAFTRANK_CACHE": str(tmp_path / "cache"),
        "DRAFTRANK_DATA": str(tmp_path / "data"),
    }
    only = ["--draft", "too-deep", "--draft", "shallow", "--repeats", "1"]
    ran = draftrank(measured_root, "run", *only, "--json", **folders)
    assert ran.code == 1
    rows = {row["draft"]: row for row in ran.json["rows"]}
    assert rows["shallow"]["speedup"] > 0
    assert not rows["too-deep"]["ranked"]
    assert "build failed" in rows["too-deep"]["reason"]
    assert "draft too-deep could not be built" in ran.err
    assert (tmp_path / "state" / "results.sqlite").is_file()
    assert not (tmp_path / "state" / "cache").exists()
    assert len(list((tmp_path / "cache" / "drafts").glob("*/draftrank.json"))) == 1
    assert not (measured_root / ".draftrank").exists()
    built = draftrank(measured_root, "build", "--draft", "too-deep", "--draft", "ngram", "--json", **folders)
    assert built.code == 1
    failed, ngram = built.json["drafts"]
    assert "99" in failed["failure"]
    assert ngram["failure"] is None


def test_each_temperature_has_a_board_of_its_own(measured_root):
    wanted = ["--temperature", "0", "--temperature", "0.7", "--temperature", "1", "--temperature", "0"]
    outcome = draftrank(measured_root, "run", "--draft", "ngram", "--repeats", "1", *wanted, "--json")
    assert outcome.code == 0
    assert [board["mode"] for board in outcome.json["boards"]] == ["greedy", "t=0.7", "t=1"]
    assert len(outcome.json["sessions"]) == 3
    assert len(outcome.json["rows"]) == 3


def test_a_budget_lets_a_session_repeat_until_it_is_spent(measured_root):
    command = [
        "run",
        "--draft",
        "ngram",
        "--repeats",
        "1",
        "--target-ci",
        "0.001",
        "--budget",
        "1s",
        "--json",
    ]
    outcome = draftrank(measured_root, *command)
    assert outcome.code == 0
    store = Store.open(measured_root / ".draftrank" / "results.sqlite")
    result = store.result(outcome.json["session"])
    store.close()
    assert result.session.stopped_by in ("budget", "spread")
    required_s = spent_s(trial for trial in result.trials if trial.repeat < result.session.repeats)
    repeats = 1 + max(trial.repeat for trial in result.trials)
    assert repeats > result.session.repeats or required_s >= 1, "a slow machine spends it all at once"
    assert draftrank(measured_root, *command).json["session"] == outcome.json["session"]
