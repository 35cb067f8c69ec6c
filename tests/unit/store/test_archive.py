"""An archive gives what is there, and reads a bundle once."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given

from builders import result as measured
from draftrank.board import archived as archived_module
from draftrank.board.archived import archived_boards, archived_servings, shown_boards
from draftrank.board.ranking import build_boards
from draftrank.board.serving_ranking import build_serving_boards
from draftrank.board.site import drawing as drawing_module
from draftrank.board.site.drawing import kept_drawing
from draftrank.errors import InvalidInputError, StoreError
from draftrank.store import archive as archive_module
from draftrank.store import derived as derived_module
from draftrank.store import snapshot
from draftrank.store.archive import SETTLED_NS, Archive
from draftrank.store.bundle import load_results, part_of, publish, read_in_place
from draftrank.store.derived import Derived
from draftrank.store.merging import in_order
from draftrank.store.serving_bundle import SERVING_FILES
from draftrank.store.snapshot import archived_database, database_of
from draftrank.store.store import Store
from examples import examples
from forging import version_2
from records import a_result
from served_sessions import a_serving_result
from strategies import session_results


@pytest.fixture
def reads(monkeypatch):
    """The names of the bundles that were parsed, in order."""
    found = []

    def counting(path, *arguments):
        found.append(path.name)
        return read_in_place(path, *arguments)

    monkeypatch.setattr(archive_module, "read_in_place", counting)
    return found


@pytest.fixture
def folder(tmp_path):
    """Published bundles of two sessions, the second one in two parts."""
    publish(a_result("2026-03-01-aaaa"), tmp_path / "results")
    for draft in ("a", "b"):
        publish(a_result("2026-03-02-bbbb", drafts=("a", "b")), tmp_path / "results", (draft,))
    return tmp_path / "results"


@pytest.fixture(autouse=True)
def _an_hour_later(monkeypatch):
    """No file of a test is so new that it may be written again within the same tick of its clock."""
    monkeypatch.setattr(archive_module, "time_ns", lambda: time.time_ns() + 3600 * 10**9)


def opened(folder, store=None):
    """Everything an archive says, by a new process as it were."""
    with Derived(folder.parent / "derived.sqlite") as derived:
        archive = Archive(store, folder, derived)
        return tuple(map(archive.result, archive.sessions))


def test_bundles_are_parsed_once_and_give_the_same_ever_after(folder, reads):
    first = opened(folder)
    assert first == load_results(None, folder)
    assert len(reads) == 3
    assert opened(folder) == first
    assert len(reads) == 3


def test_what_is_known_of_a_session_comes_without_its_trials(folder, reads, monkeypatch):
    opened(folder)
    monkeypatch.setattr(Archive, "result", None)
    with Derived(folder.parent / "derived.sqlite") as derived:
        known = Archive(None, folder, derived).sessions
    assert [(one.id, one.target, one.suite, one.created_at) for one in known] == [
        (one.session.id, "small-target", "quick", one.session.created_at)
        for one in load_results(None, folder)
    ]
    assert known[1].arms == {"baseline", "baseline-control", "a", "b"}
    assert len(reads) == 3


def test_an_edited_bundle_is_noticed_at_every_look_until_it_is_restored(folder):
    before = opened(folder)
    path = sorted(folder.rglob("*.json"))[0]
    content = path.read_bytes()
    times = path.stat()
    # The same size and the same time of writing: only what cannot be forged tells.
    path.write_bytes(content.replace(b'"length"', b'"stop"  ', 1))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(InvalidInputError, match="was changed after it was published") as caught:
            opened(folder)
        assert caught.value.problems[0].file == str(path)
    path.write_bytes(content)
    assert opened(folder) == before
    path.rename(path.with_name("2026-03-01-00000000.json"))
    with pytest.raises(InvalidInputError, match="does not lie where its content says"):
        opened(folder)


def test_a_file_that_was_only_touched_is_not_parsed_again(folder, reads):
    before = opened(folder)
    for path in folder.rglob("*.json"):
        path.touch()
    assert opened(folder) == before
    assert len(reads) == 3


def test_a_file_that_may_be_written_again_at_once_is_hashed_at_the_next_look(folder, monkeypatch):
    path = sorted(folder.rglob("*.json"))[0]
    now = path.stat().st_ctime_ns + SETTLED_NS
    monkeypatch.setattr(archive_module, "time_ns", lambda: now - 1)
    assert archive_module._state_of(path) == ""
    monkeypatch.setattr(archive_module, "time_ns", lambda: now)
    assert archive_module._state_of(path) != ""


def test_a_removed_bundle_disappears_and_a_new_one_appears(folder, reads):
    opened(folder)
    (gone,) = publish(a_result("2026-03-01-aaaa"), folder)
    gone.unlink()
    assert [one.session.id for one in opened(folder)] == ["2026-03-02-bbbb"]
    publish(a_result("2026-03-03-cccc"), folder)
    assert [one.session.id for one in opened(folder)] == ["2026-03-02-bbbb", "2026-03-03-cccc"]
    assert len(reads) == 4
    with Derived(folder.parent / "derived.sqlite") as derived:
        assert str(gone) not in derived.all_of("bundle")


def test_the_store_and_the_folder_are_joined_and_a_new_trial_is_seen(folder, tmp_path):
    path = tmp_path / "store.sqlite"
    whole = a_result("2026-03-01-aaaa", drafts=("c",))
    with Store.open(path) as store:
        store.add_result(whole.model_copy(update={"trials": whole.trials[:-1]}))
        expected = load_results(store, folder)
        assert opened(folder, path) == opened(folder, path) == opened(folder, store) == expected
        assert len(expected[0].session.arms) == 4
        store.add_trial(whole.session.id, whole.trials[-1])
        assert opened(folder, path) == load_results(store, folder) != expected
        contrary = whole.trials[0].model_copy(update={"decode_s": 9.0, "repeat": 1, "attempt": 1})
        store.add_trial(whole.session.id, contrary)
        publish(a_result("2026-03-01-aaaa", drafts=("c",), seed=8), folder)
    with pytest.raises(StoreError, match="differ in its seed"):
        opened(folder, path)


def test_without_a_file_to_keep_things_in_everything_is_read_anew(folder, reads):
    expected = load_results(None, folder)
    for place in (None, Path("/proc/nowhere/derived.sqlite"), folder):
        with Derived(place) as derived:
            archive = Archive(None, folder, derived)
            assert tuple(map(archive.result, archive.sessions)) == expected
    assert len(reads) == 9


def test_a_damaged_or_deleted_file_changes_nothing(folder):
    expected = opened(folder)
    kept = folder.parent / "derived.sqlite"
    kept.write_bytes(b"no database" * 1000)
    assert opened(folder) == expected
    assert not kept.exists()
    assert opened(folder) == expected
    assert kept.is_file()
    connection = sqlite3.connect(kept)
    with connection:
        connection.execute("UPDATE entries SET value = ?", (b"{}",))
    connection.close()
    assert opened(folder) == expected


def test_other_code_computes_everything_anew(folder, reads, monkeypatch):
    opened(folder)
    monkeypatch.setattr(derived_module, "code_sha256", lambda: "other")
    assert opened(folder) == load_results(None, folder)
    assert len(reads) == 6


def test_a_changed_line_of_code_is_other_code(tmp_path, monkeypatch):
    package = tmp_path / "draftrank"
    for room in derived_module.ROOMS:
        (package / room).mkdir(parents=True)
        (package / room / "module.py").write_text("one = 1\n")
    monkeypatch.setattr(derived_module, "__file__", str(package / "store" / "derived.py"))
    found = set()
    for room in ("", *derived_module.ROOMS):
        if room:
            (package / room / "module.py").write_text("one = 2\n")
        derived_module.code_sha256.cache_clear()
        found.add(derived_module.code_sha256())
    derived_module.code_sha256.cache_clear()
    assert len(found) == 5


def test_several_processes_may_look_at_once(folder):
    expected = load_results(None, folder)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(opened, [folder] * 8)) == [expected] * 8


@examples(8)
@given(session_results(max_drafts=2))
def test_any_session_comes_back_as_it_was(tmp_path_factory, result):
    folder = tmp_path_factory.mktemp("archive") / "results"
    drafts = [arm.id for arm in result.session.arms if arm.kind == "draft"]
    data = version_2(part_of(result, drafts[:1]))
    older = folder.parent / "older.json"
    older.write_text(json.dumps(data))
    publish(result, folder)
    assert opened(folder) == opened(folder) == (in_order(result),)


def test_boards_are_those_of_the_results_and_are_computed_once(tmp_path, monkeypatch):
    folder = tmp_path / "results"
    for result in (
        measured({"ngram": 1.5, "suffix": 1.2}, id="20261101-a"),
        measured({"ngram": 1.4}, id="20261102-b"),
        measured({"ngram": 0.9}, id="20261103-c", suite="core"),
    ):
        publish(result, folder)
    expected = build_boards(load_results(None, folder))
    assert len(expected) == 2

    def boards(**chosen):
        with Derived(tmp_path / "derived.sqlite") as derived:
            return archived_boards(Archive(None, folder, derived), **chosen)

    assert boards() == expected
    monkeypatch.setattr(Archive, "result", None)  # from here on no trial is read
    assert boards() == expected
    assert boards(suite="core") == tuple(board for board in expected if board.key.suite == "core")
    assert boards(target="another") == ()


def test_boards_that_are_shown_are_kept_for_their_sessions(tmp_path, monkeypatch):
    folder = tmp_path / "results"
    publish(measured({"ngram": 1.5, "suffix": 1.2}, id="20261101-a"), folder)
    publish(measured({"ngram": 0.9}, id="20261103-c", suite="core"), folder)

    def expected():
        return {
            board.key.id: replace(board, rows=tuple(replace(row, ahead={}) for row in board.rows), results=())
            for board in build_boards(load_results(None, folder))
        }

    def shown(**chosen):
        with Derived(tmp_path / "derived.sqlite") as derived:
            found = shown_boards(Archive(None, folder, derived), **chosen)
        return {board.key.id: board for board in found}

    before = expected()
    assert shown() == before
    with monkeypatch.context() as patch:
        patch.setattr(
            archived_module, "archived_rows", lambda *_: []
        )  # from here on no session's rows are read
        assert shown() == before
        core = {key: board for key, board in before.items() if board.key.suite == "core"}
        assert shown(suite="core") == core
        assert shown(target="another") == {}
    publish(measured({"ngram": 1.7, "faster": 2.0}, id="20261104-d"), folder)
    after = expected()
    assert after != before
    assert shown() == shown() == after
    next(folder.rglob("*.json")).unlink()
    assert shown() == expected()


def test_serving_boards_are_those_of_the_results_and_are_computed_once(tmp_path, monkeypatch):
    folder, path = tmp_path / "serving", tmp_path / "store.sqlite"
    SERVING_FILES.publish(a_serving_result(), folder)
    other = a_serving_result(id="2026-11-30-other", suite="core")

    def boards(**chosen):
        with Derived(tmp_path / "derived.sqlite") as derived:
            return archived_servings(Archive(path, None, derived, None, folder), **chosen)

    with Store.open(path) as store:
        expected = build_serving_boards(SERVING_FILES.read_all(folder))
        assert boards() == expected
        with monkeypatch.context() as patch:
            patch.setattr(Archive, "serving", None)  # from here on no session is read
            assert boards() == boards(target=expected[0].key.target) == expected
            assert boards(suite="another") == ()
        store.serving.add_result(other)
        both = build_serving_boards([*SERVING_FILES.read_all(folder), other])
        assert boards() == boards() == both != expected
        assert [board.key.suite for board in boards(suite="core")] == ["core"]
    (published,) = folder.rglob("*.json")
    published.write_bytes(published.read_bytes().replace(b'"length"', b'"stop"', 1))
    for _ in range(2):
        with pytest.raises(
            InvalidInputError, match=r"was changed after it was published|not in canonical form"
        ):
            boards()
    published.unlink()
    assert boards() == build_serving_boards([other])


def test_what_reads_files_alone_does_not_wait_for_the_database():
    script = (
        "import sys, draftrank.board.archived, draftrank.board.site; sys.exit('sqlalchemy' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", script], env=environment).returncode == 0


def test_pairs_that_did_not_decode_the_same_cells_are_still_compared_trial_by_trial(tmp_path):
    whole = measured({"ngram": 1.5, "suffix": 1.2}, id="20261101-a")
    last = max(trial.key for trial in whole.trials if trial.arm == "suffix")
    fewer = tuple(trial for trial in whole.trials if trial.key != last)
    publish(whole.model_copy(update={"trials": fewer}), tmp_path / "results")
    expected = build_boards(load_results(None, tmp_path / "results"))
    for _ in range(2):
        with Derived(tmp_path / "derived.sqlite") as derived:
            assert archived_boards(Archive(None, tmp_path / "results", derived)) == expected


def test_the_database_and_the_drawings_are_made_anew_only_when_something_changed(folder, monkeypatch):
    made = []

    def counting(results):
        made.append("database")
        return database_of(results)

    def drawing(spec, theme):
        made.append(theme)
        return json.dumps([spec, theme]).encode()

    monkeypatch.setattr(snapshot, "database_of", counting)
    monkeypatch.setattr(drawing_module, "draw", drawing)

    def look():
        with Derived(folder.parent / "derived.sqlite") as derived:
            archive = Archive(None, folder, derived)
            assert archived_database(archive) == database_of(map(archive.result, archive.sessions))
            for name, spec, theme in (
                ("a", {"mark": "bar"}, "light"),
                ("b", {"mark": "bar"}, "dark"),
                ("c", {"mark": len(archive.sessions)}, "light"),
            ):
                assert kept_drawing(derived, name, spec, theme) == json.dumps([spec, theme]).encode()

    look()
    assert made == ["database", "light", "dark", "light"]
    look()
    assert len(made) == 4
    publish(a_result("2026-03-03-cccc"), folder)
    look()
    assert made[4:] == ["database", "light"]
