"""Publishing, reading and importing bundles."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given

from builders import draft_first
from builders import result as measured
from draftrank.errors import InvalidInputError, StoreError
from draftrank.measure.records import BASELINE, CONTROL, SessionResult
from draftrank.store import bundle_format, bundle_reading
from draftrank.store.bundle import folder_name, load_results, part_of, publish, read_bundle
from draftrank.store.bundle_format import COLUMNS, SCHEMA_FILE, bundle_schema, content_hash, schema_text
from draftrank.store.bundle_reading import bundle_result
from draftrank.store.merging import in_order, merge, trial_order
from draftrank.store.parity_bundle import PARITY_FILES
from draftrank.store.serving_bundle import SERVING_FILES
from draftrank.store.shared_bundles import import_file
from draftrank.store.store import Store
from examples import examples
from forging import forge, version_2
from parities import a_parity, a_turn
from records import a_machine, a_result, a_session, a_trial
from served_sessions import a_serving_result
from strategies import session_results


@pytest.fixture
def published(tmp_path):
    """The path of one published bundle."""
    (path,) = publish(a_result(), tmp_path / "results")
    return path


def rewrite(path, change):
    """Changes a bundle's JSON in place, and its layout."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def problems_of(path):
    with pytest.raises(InvalidInputError) as caught:
        read_bundle(path)
    assert {problem.file for problem in caught.value.problems} == {str(path)}
    assert all(problem.fix for problem in caught.value.problems)
    return caught.value.problems


# -- publishing ----------------------------------------------------------------------------------


def test_all_drafts_of_a_session_share_one_bundle_with_the_baselines(tmp_path):
    result = a_result(drafts=("b", "a"))
    (path,) = publish(result, tmp_path)
    assert re.fullmatch(r"small-target/xeon-8c/2026-03-01-[0-9a-f]{8}\.json", str(path.relative_to(tmp_path)))
    read = read_bundle(path)
    assert [arm.id for arm in read.session.arms] == [BASELINE, CONTROL, "a", "b"]
    assert set(read.trials) == set(result.trials)
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == [path]


def test_only_the_drafts_that_are_not_published_yet_are_written(tmp_path):
    result = a_result(drafts=("a", "b", "c"))
    (first,) = publish(result, tmp_path, drafts=("b",))
    assert [arm.id for arm in read_bundle(first).session.arms] == [BASELINE, CONTROL, "b"]
    content = first.read_bytes()
    both = publish(result, tmp_path)
    (second,) = set(both) - {first}
    assert both == sorted([first, second])
    assert [arm.id for arm in read_bundle(second).session.arms] == [BASELINE, CONTROL, "a", "c"]
    assert first.read_bytes() == content
    assert publish(result, tmp_path, drafts=("c",)) == [second]
    assert load_results(None, tmp_path) == (in_order(result),)


def test_equal_content_gives_equal_paths_and_bytes_whatever_its_order(tmp_path):
    result = a_result()
    turned = SessionResult(
        session=result.session.model_copy(update={"arms": result.session.arms[::-1]}),
        trials=result.trials[::-1],
    )
    (first,) = publish(result, tmp_path / "one")
    (again,) = publish(turned, tmp_path / "other")
    assert first.relative_to(tmp_path / "one") == again.relative_to(tmp_path / "other")
    assert first.read_bytes() == again.read_bytes()
    before = first.stat().st_mtime_ns
    assert publish(result, tmp_path / "one") == [first]
    assert first.stat().st_mtime_ns == before


def test_what_an_older_version_published_is_not_published_twice(tmp_path):
    results = tmp_path / "results"
    olds = []
    for draft in ("a", "b"):
        data = version_2(part_of(a_result(drafts=("a", "b", "c")), {draft}))
        for trial in data["trials"]:
            del trial["judgement"]  # a field that this version did not have yet
        older = results / "small-target" / draft / "xeon-8c" / f"2026-03-01-{content_hash(data)}.json"
        older.parent.mkdir(parents=True)
        older.write_text(json.dumps(data))
        olds.append(older)
    before = [path.read_bytes() for path in olds]
    assert publish(a_result(drafts=("a", "b", "c")), results, drafts=("a", "b")) == olds
    (new,) = set(publish(a_result(drafts=("a", "b", "c")), results)) - set(olds)
    assert [arm.id for arm in read_bundle(new).session.arms] == [BASELINE, CONTROL, "c"]
    assert [path.read_bytes() for path in olds] == before
    assert load_results(None, results) == (in_order(a_result(drafts=("a", "b", "c"))),)


def test_a_bundle_of_version_2_holds_one_draft(tmp_path):
    path = tmp_path / "bundle.json"
    path.write_text(json.dumps(version_2(a_result(drafts=("a", "b")))))
    assert [(one.field, one.message) for one in problems_of(path)] == [
        ("session.arms", "has more than one draft")
    ]


def test_a_core_session_of_eight_drafts_takes_less_than_a_megabyte(tmp_path):
    """Real trials: a published session of ten drafts, of which eight are published anew."""
    archive = Path(__file__).parents[3] / "leaderboard" / "results"
    name = b'"2026-11-23-778de0f33aa6"'
    files = [path for path in archive.rglob("2026-11-23-*.json") if name in path.read_bytes()]
    (whole,) = merge(read_bundle(path) for path in files)
    drafts = [arm.id for arm in whole.session.arms if arm.kind == "draft"][:8]
    (path,) = publish(whole, tmp_path, drafts)
    read = in_order(read_bundle(path))
    assert read == in_order(part_of(whole, drafts))
    assert {trial.arm for trial in read.trials} == {BASELINE, CONTROL, *drafts}
    assert len({trial.cell for trial in read.trials}) == 144
    assert path.stat().st_size < 1_000_000 < sum(file.stat().st_size for file in files) / 3


def test_other_content_gives_another_file(tmp_path):
    publish(a_result(), tmp_path)
    publish(a_result(warnings=()), tmp_path)
    assert len(list(tmp_path.rglob("*.json"))) == 2


def test_a_trial_stands_on_one_line_so_that_a_diff_is_short(published, tmp_path):
    lines = published.read_text().splitlines()
    trials = [json.loads(line.rstrip(",")) for line in lines if line.startswith("    [")]
    assert len(trials) == 24
    assert {len(trial) for trial in trials} == {len(COLUMNS)}
    shorter = a_result().model_copy(update={"trials": a_result().trials[1:-1]})
    (other,) = publish(shorter, tmp_path / "other")
    assert len(lines) - len(other.read_text().splitlines()) == 2


def test_tokens_stand_once_per_prompt_turn_and_times_count_from_the_sessions(tmp_path):
    apart = (9, 9, 9, 9, 9, 9, 9)
    result = a_result()
    trials = [
        trial.model_copy(update={"token_ids": apart, "started_at": "2026-03-01T12:00:00+02:00"})
        if (trial.arm, trial.cell) == (BASELINE, ("chat", "p2", 0, 1))
        else trial
        for trial in result.trials
    ]
    (path,) = publish(result.model_copy(update={"trials": tuple(trials)}), tmp_path)
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in json.loads(path.read_text())["trials"]]
    stated = [(row["prompt"], row["turn"], row["repeat"], row["arm"]) for row in rows if row["token_ids"]]
    turns = [("q1", 0), ("p1", 0), ("p1", 1), ("p2", 0)]
    assert stated == [*((*turn, 0, BASELINE) for turn in turns), ("p2", 0, 1, BASELINE)]
    assert rows[-3]["started_at"] == "2026-03-01T12:00:00+02:00"
    # 10:05:02 is written without milliseconds, so it stays a text; the session began at 10:00:00.123.
    assert rows[-1]["started_at"] == "2026-03-01T10:05:03Z"
    moved = [
        trial.model_copy(update={"started_at": f"2026-03-01T09:59:5{trial.position}.123Z"})
        for trial in result.trials
    ]
    (other,) = publish(result.model_copy(update={"trials": tuple(moved)}), tmp_path / "moved")
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in json.loads(other.read_text())["trials"]]
    assert [row["started_at"] for row in rows[:3]] == [-10_000, -9_000, -8_000]
    assert read_bundle(other).trials == tuple(sorted(moved, key=trial_order))


def test_a_bundle_is_ascii_so_that_nothing_invisible_hides_in_it(tmp_path):
    (path,) = publish(a_result(warnings=("übel \u202egnol\u2028",)), tmp_path)
    assert path.read_bytes().isascii()
    assert read_bundle(path).session.warnings == ("übel \u202egnol\u2028",)


@pytest.mark.parametrize(
    ("machine_class", "folder"),
    [
        ("xeon-8c", "xeon-8c"),
        ("Radeon RX 6700/6700 XT", "radeon-rx-6700-6700-xt"),
        ("  ..A__b(R) 2.4GHz.. ", "a-b-r-2.4ghz"),
        ("C:\\con", "c-con"),
        ("x" * 300, "x" * 80),
    ],
)
def test_a_machine_class_becomes_a_plain_folder_name(machine_class, folder):
    assert folder_name(machine_class) == folder


@pytest.mark.parametrize("machine_class", ["", "..", "../../etc", "a/../../b", "a\\..\\b", "///", "é"])
def test_a_machine_class_that_is_no_name_or_climbs_is_refused(tmp_path, machine_class):
    result = a_result(machine=a_machine(machine_class=machine_class))
    with pytest.raises(InvalidInputError, match="cannot name a folder"):
        publish(result, tmp_path / "results")
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"target": "../up"}, "session.target"),
        ({"target": ""}, "session.target"),
        ({"created_at": "yesterday"}, "session.created_at"),
        ({"created_at": "2026-W10-1T10:00:00Z"}, "session.created_at"),
        ({"created_at": "2026-02-30T10:00:00Z"}, "session.created_at"),
        ({"drafts": ("../up",)}, "session.arms.2.id"),
        ({"arms": a_session().arms[1:]}, "session.arms"),
        ({"suite": "a\x00b"}, "session.suite"),
        ({"id": "2026-03-01-\u202e"}, "session.id"),
        ({"skipped_tasks": ("\x1b[31m",)}, "session.skipped_tasks.0"),
    ],
)
def test_what_could_not_be_read_again_is_not_published(tmp_path, changes, field):
    with pytest.raises(InvalidInputError) as caught:
        publish(a_result(**changes), tmp_path / "results")
    assert field in {problem.field for problem in caught.value.problems}
    assert not list(tmp_path.rglob("*"))


def test_one_unsound_draft_keeps_all_bundles_of_the_session_unwritten(tmp_path):
    result = a_result(drafts=("a", "b"))
    extra = a_trial("b", prompt="unknown")
    with pytest.raises(InvalidInputError, match="the task has no prompt 'unknown'"):
        publish(result.model_copy(update={"trials": (*result.trials, extra)}), tmp_path / "results")
    assert not list(tmp_path.rglob("*"))


def test_a_session_without_drafts_gives_no_bundle(tmp_path):
    assert publish(a_result(drafts=()), tmp_path) == []


# -- reading -------------------------------------------------------------------------------------


OUTPUT = a_trial().token_ids


def set_trial(number, **values):
    def change(data):
        for name, value in values.items():
            data["trials"][number][data["columns"].index(name)] = value

    return change


def drop_column(name):
    def change(data):
        place = data["columns"].index(name)
        for values in (data["columns"], *data["trials"]):
            del values[place]

    return change


def set_header(**values):
    return lambda data: data["session"].update(values)


def add_reference(**values):
    reference = {"implementation": "x", "method": "assisted", "draft": "ngram-2", "differs": []} | values
    arm = {"id": "other", "kind": "reference", "num_speculative_tokens": 2, "reference": reference}
    return lambda data: data["session"]["arms"].append(arm)


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        (lambda data: data.update(schema_version=4), "schema_version", "is 4, this draftrank reads 1 to 3"),
        (lambda data: data.update(schema_version=True), "schema_version", "is True"),
        (lambda data: data.pop("schema_version"), "schema_version", "is missing"),
        (lambda data: data.update(note="x"), "note", "Extra inputs"),
        (lambda data: data.pop("session"), "session", "Field required"),
        (drop_column("decode_s"), "trials.3.decode_s", "Field required"),
        (lambda data: data["trials"][3].pop(), "trials.3", "is not a list of 24 values"),
        (lambda data: data["trials"][3].append(1), "trials.3", "is not a list of 24 values"),
        (lambda data: data["trials"].insert(3, {"arm": "x"}), "trials.3", "is not a list of 24 values"),
        (lambda data: data.update(trials={}), "trials", "is not a list"),
        (lambda data: data.pop("columns"), "columns", "is not a list of names"),
        (lambda data: data.update(columns=[1]), "columns", "is not a list of names"),
        (lambda data: data["columns"].__setitem__(0, "prompt"), "columns", "names a field twice"),
        (lambda data: data["columns"].__setitem__(0, "speed"), "trials.0.speed", "Extra inputs"),
        (
            set_trial(0, token_ids=None),
            "trials.0.token_ids",
            "no trial of the same prompt and turn before it",
        ),
        (set_trial(4, token_ids=[5, 49151]), "trials.4", "tokens differ from steps"),
        (set_trial(4, started_at=2**50), "trials.4.started_at", "valid string"),
        (set_trial(4, started_at=True), "trials.4.started_at", "valid string"),
        (set_header(created_at=7), "session.created_at", "valid string"),
        (set_trial(2, decode_s="0.5"), "trials.2.decode_s", "valid number"),
        (set_trial(2, decode_s=-1.0), "trials.2.decode_s", "greater than"),
        (set_trial(1, steps=7), "trials.1", "steps differ from the histogram's sum"),
        (set_trial(1, accept_histogram=[7], steps=7), "trials.1", "tokens differ from steps"),
        (set_trial(0, arm="stranger"), "trials.0.arm", "no arm 'stranger'"),
        (set_trial(1, task="stranger", token_ids=list(OUTPUT)), "trials.1.task", "no task 'stranger'"),
        (set_trial(1, prompt="stranger", token_ids=list(OUTPUT)), "trials.1.prompt", "no prompt 'stranger'"),
        (set_trial(1, turn=2, token_ids=list(OUTPUT)), "trials.1.turn", "fewer turns"),
        (set_trial(2, offered=[0, 1]), "trials.2.offered", "does not fit the histogram"),
        (set_trial(2, offered=[3, 3], proposed=9), "trials.2.offered", "does not fit the histogram"),
        (set_trial(2, proposed=3), "trials.2.offered", "does not fit the histogram"),
        (lambda data: data["trials"].append(data["trials"][5]), "trials.24", "repeats trials.5"),
        (set_header(created_at="never"), "session.created_at", "does not begin with a date"),
        (set_header(target="../x"), "session.target", "not an identifier"),
        (set_header(plan_sha256="x"), "session.plan_sha256", "match pattern"),
        (lambda data: data["session"]["arms"].pop(), "session.arms", "not one baseline"),
        (lambda data: data["session"]["arms"].append(data["session"]["arms"][2]), "session.arms", "2 times"),
        (
            lambda data: data["session"]["arms"][1].update(id="x"),
            "session.arms.1.id",
            "does not fit the kind",
        ),
        (
            lambda data: data["session"]["arms"][2].update(num_speculative_tokens=3),
            "trials.2.accept_histogram",
            "must have num_speculative_tokens",
        ),
        (
            lambda data: data["session"]["tasks"][0].update(max_new_tokens=6),
            "trials.8.token_ids",
            "more than the task's max_new_tokens",
        ),
        (lambda data: data["session"]["tasks"][0]["turns"].pop(), "session.tasks.0", "do not match"),
        (add_reference(draft="stranger"), "session.arms.3.reference.draft", "no draft 'stranger'"),
        (add_reference(draft=None), "session.arms.3.num_speculative_tokens", "must be 0"),
        (
            lambda data: data["session"]["arms"][2].update(kind="reference"),
            "session.arms.2.reference",
            "only there",
        ),
    ],
)
def test_a_wrong_bundle_is_refused_by_file_and_field(published, change, field, message):
    rewrite(published, change)
    found = problems_of(published)
    assert [str(problem) for problem in found if problem.field == field and message in problem.message], found


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"token_ids": [5, 49151, 2, 2, 17, 0, 9]}, "trials.4", "not the hash of token_ids"),
        ({"token_ids_sha256": "0" * 64}, "trials.4", "not the hash of token_ids"),
        ({"token_ids_sha256": None}, "trials.4", "not the hash of token_ids"),
        ({"speed": 3}, "trials.4.speed", "Extra inputs"),
        ({"token_ids": None}, "trials.4", "not the hash of token_ids"),
        ({"token_ids": None, "token_ids_sha256": None}, "trials.4.token_ids", "valid array"),
    ],
)
def test_a_wrong_trial_of_version_2_is_refused_by_field(tmp_path, change, field, message):
    path = tmp_path / "bundle.json"
    data = version_2(a_result())
    path.write_text(json.dumps(data))
    assert in_order(read_bundle(path)) == in_order(a_result())
    data["trials"][4].update(change)
    path.write_text(json.dumps(data))
    found = problems_of(path)
    assert [str(problem) for problem in found if problem.field == field and message in problem.message], found
    del data["trials"][4]["token_ids_sha256"]
    path.write_text(json.dumps(data))
    assert problems_of(path)[0].field == "trials.4.token_ids_sha256"


def test_rows_that_repeat_long_tokens_are_refused_before_they_take_the_memory(published, monkeypatch):
    monkeypatch.setattr(bundle_format, "MAX_TOKENS", 24 * 7)
    assert len(read_bundle(published).trials) == 24
    monkeypatch.setattr(bundle_format, "MAX_TOKENS", 24 * 7 - 1)
    assert [(one.field, one.message) for one in problems_of(published)] == [
        ("trials.23", "is beyond 167 tokens of all trials together")
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON"),
        (b'{"schema_version": 3,\n', "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[]", "is not a JSON object"),
        (b'{"schema_version": 3, "schema_version": 1}', "stands twice"),
        (b'{"schema_version": 3, "session": NaN}', "not finite"),
        (b'{"schema_version": 3, "session": 1e999}', "not finite"),
        (b'{"schema_version": 3, "session": 9007199254740992}', "too large"),
        (b'{"schema_version": 3, "session": ' + b"9" * 10_000 + b"}", "too large"),
        (b'{"schema_version": 3, "session": ' + b"[" * 100_000, "is not valid JSON"),
        (b'{"schema_version": 3, "session": ' + b"[" * 900 + b"]" * 900 + b"}", ""),
        (b'{"schema_version": 3, "session": "\\ud800"}', ""),
    ],
)
def test_what_is_no_plain_json_is_refused(published, content, message):
    published.write_bytes(content)
    assert message in problems_of(published)[0].message


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a\x00b", "U+0000"),
        ("\x1b[31mred", "U+001B"),
        ("safe\u202etxt.exe", "U+202E"),
        ("two\nlines", "U+000A"),
        ("two\u2028lines", "U+2028"),
        ("\ufeffx", "U+FEFF"),
        ("a\ud800", "U+D800"),
        ("", "is empty"),
        ("x" * 201, "more than 200"),
    ],
)
def test_an_id_that_is_no_line_of_visible_text_is_refused(published, name, told):
    def prompt(data):
        for trial in data["trials"]:
            trial[1] = name if trial[1] == "p1" else trial[1]
        data["session"]["tasks"][0]["prompts"][0] = name

    def task(data):
        for trial in data["trials"]:
            trial[0] = name if trial[0] == "chat" else trial[0]
        data["session"]["tasks"][0]["task"] = name

    before = published.read_text()
    rewrite(published, prompt)
    (problem, *_) = problems_of(published)
    assert told in problem.message
    assert problem.field == (None if name == "a\ud800" else "session.tasks.0.prompts.0")
    published.write_text(before)
    rewrite(published, task)
    assert problems_of(published)


def test_the_line_of_a_json_error_is_named(published):
    lines = published.read_text().splitlines()
    lines[6] = "oops"
    published.write_text("\n".join(lines))
    assert problems_of(published)[0].line == 7


def test_another_published_file_is_said_to_be_none(tmp_path):
    serving = SERVING_FILES.publish(a_serving_result(), tmp_path)
    parity = PARITY_FILES.publish(a_parity([a_turn()]), tmp_path)
    for path, what in ((serving, "a serving session"), (parity, "a parity record")):
        (problem,) = problems_of(path)
        assert problem.message == f"is {what} and no result bundle"


def test_a_missing_or_special_file_is_refused(tmp_path):
    assert problems_of(tmp_path / "missing.json")[0].message == "is not a file"
    assert problems_of(tmp_path)[0].message == "is not a file"
    os.mkfifo(tmp_path / "pipe.json")
    assert problems_of(tmp_path / "pipe.json")[0].message == "is not a file"


def test_a_file_beyond_the_limit_is_refused_and_not_written(published, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_reading, "MAX_BYTES", published.stat().st_size)
    read_bundle(published)
    monkeypatch.setattr(bundle_reading, "MAX_BYTES", published.stat().st_size - 1)
    assert "has more than" in problems_of(published)[0].message
    with pytest.raises(InvalidInputError, match="has more than"):
        publish(a_result(), tmp_path / "again")


# -- stores and folders --------------------------------------------------------------------------


@examples(6)
@given(session_results())
def test_publishing_and_importing_loses_nothing(tmp_path_factory, result):
    """Whatever was drawn, in one bundle, in two, and in the form of version 2."""
    folder = tmp_path_factory.mktemp("round-trip")
    with Store.open(folder / "first.sqlite") as first, Store.open(folder / "second.sqlite") as second:
        first.add_result(result)
        drafts = [arm.id for arm in result.session.arms if arm.kind == "draft"]
        paths = publish(first.result(result.session.id), folder / "published", drafts[:1])
        paths += (
            publish(first.result(result.session.id), folder / "published", drafts[1:]) if drafts[1:] else []
        )
        for draft in drafts:
            older = folder / "older.json"
            older.write_text(json.dumps(version_2(part_of(result, {draft}))))
            assert in_order(read_bundle(older)) == in_order(part_of(result, {draft}))
        for path in reversed(paths):
            second.join_result(read_bundle(path))  # random times contradict each other, so none is imported
        assert second.results() == (in_order(result),)
        assert load_results(None, folder / "published") == (in_order(result),)
        assert load_results(first, folder / "published") == (in_order(result),)
        whole = publish(result, folder / "whole")
        again = publish(second.result(result.session.id), folder / "again")
        assert [path.read_bytes() for path in again] == [path.read_bytes() for path in whole]
        assert all(in_order(read_bundle(path)) == in_order(result) for path in whole)


@examples(15)
@given(session_results(max_drafts=2))
def test_a_store_gives_back_any_result_exactly(tmp_path_factory, result):
    with Store.open(tmp_path_factory.mktemp("store") / "results.sqlite") as store:
        store.begin_session(result.session)
        for trial in result.trials:
            store.add_trial(result.session.id, trial)
        assert store.sessions() == (result.session,)
        assert in_order(store.result(result.session.id)) == in_order(result)


def test_bundles_of_one_session_become_one_session_in_the_store(tmp_path):
    result = a_result(drafts=("a", "b"))
    with Store.open(tmp_path / "results.sqlite") as store:
        for draft in ("b", "a"):
            for path in publish(result, tmp_path / "results", (draft,)):
                import_file(path, store)
                import_file(path, store)
        assert store.results() == (in_order(result),)


def test_a_bundle_whose_seconds_leave_holes_in_the_clock_is_not_imported(tmp_path):
    honest = draft_first(measured({"ngram": 1.5}))
    (path,) = publish(honest, tmp_path / "results")
    forged = forge(path, tmp_path / "forged.json", 0.1)
    with Store.open(tmp_path / "results.sqlite") as store:
        with pytest.raises(InvalidInputError, match=r"11\.1% of each trial of ngram .*measure it again"):
            import_file(forged, store)
        assert store.results() == ()
        import_file(path, store)
        assert store.results() == (in_order(honest),)


def test_a_bundle_that_contradicts_the_store_is_refused_and_changes_nothing(tmp_path):
    (path,) = publish(a_result(seed=8, drafts=("b",)), tmp_path / "results")
    with Store.open(tmp_path / "results.sqlite") as store:
        store.add_result(a_result(drafts=("a",)))
        with pytest.raises(StoreError, match="differ in its seed"):
            import_file(path, store)
        assert store.results() == (in_order(a_result(drafts=("a",))),)


def test_results_come_from_the_store_and_the_folder_alike(tmp_path):
    publish(a_result("2026-03-02-bbbb"), tmp_path / "results")
    with Store.open(tmp_path / "results.sqlite") as store:
        store.add_result(a_result("2026-03-01-aaaa"))
        found = load_results(store, tmp_path / "results")
        assert [result.session.id for result in found] == ["2026-03-01-aaaa", "2026-03-02-bbbb"]
        assert load_results(store, None) == store.results()
        assert load_results(store, tmp_path / "missing") == store.results()
    assert load_results(None, None) == ()


def test_an_altered_or_moved_bundle_shows_in_its_folder(published, tmp_path):
    assert len(load_results(None, tmp_path / "results")) == 1
    rewrite(published, set_trial(2, decode_s=0.01))
    assert len(read_bundle(published).trials) == 24
    with pytest.raises(InvalidInputError, match="was changed after it was published") as caught:
        load_results(None, tmp_path / "results")
    assert caught.value.problems[0].file == str(published)


def test_the_layout_of_a_bundle_is_not_its_content(published, tmp_path):
    rewrite(published, lambda _: None)
    assert load_results(None, tmp_path / "results") == (in_order(a_result()),)


def test_every_wrong_bundle_of_a_folder_is_named(tmp_path):
    whole = a_result(drafts=("a", "b", "c"))
    paths = sorted(path for draft in "abc" for path in publish(whole, tmp_path, (draft,)))
    paths[0].write_text("{")
    paths[2].rename(paths[2].with_name("2026-03-01-00000000.json"))
    with pytest.raises(InvalidInputError) as caught:
        load_results(None, tmp_path)
    assert {problem.file for problem in caught.value.problems} == {
        str(paths[0]),
        str(paths[2].with_name("2026-03-01-00000000.json")),
    }


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("runtime", "backend"),
    [
        ("torch-eager", "transformers"),
        ("torch-native", "cpp"),
        ("torch-captured", "cuda-graphs"),
        ("torch-fused", "torch-fused"),
        ("llama.cpp", "llama.cpp"),
    ],
)
def test_older_bundles_are_read_with_the_names_of_now(published, version, runtime, backend):
    data = version_2(read_bundle(published))
    session = data["session"]
    del session["backend"], session["target_ci"]
    session |= {"runtime": runtime, "precision": 0.02, "stopped_by": "precision", "dtype": "gguf"}
    for arm in session["arms"]:
        del arm["backend"], arm["dtype"]
    read = bundle_result(data | {"schema_version": version}, "older.json").session
    assert (read.backend, read.target_ci, read.stopped_by, read.dtype) == (backend, 0.02, "target_ci", "gguf")
    assert {(arm.backend, arm.dtype) for arm in read.arms} == {(None, None)}


# -- the schema ----------------------------------------------------------------------------------


def test_the_committed_schema_is_the_generated_one():
    assert SCHEMA_FILE.read_text() == schema_text(), "write it anew with ci/generate.py"


def test_a_published_bundle_satisfies_the_schema_and_a_wrong_one_does_not(published):
    schema = bundle_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    data = json.loads(published.read_text())
    assert list(validator.iter_errors(data)) == []
    for change in (
        lambda data: data.update(schema_version=2),
        lambda data: data["trials"][0].pop(),
        lambda data: data["columns"].reverse(),
        lambda data: data["session"].update(extra=1),
        set_trial(0, decode_s="fast"),
    ):
        wrong = json.loads(published.read_text())
        change(wrong)
        assert list(validator.iter_errors(wrong))
