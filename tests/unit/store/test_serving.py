"""Serving sessions in the store and as files."""

from __future__ import annotations

import json

import pytest

from draftrank.errors import InvalidInputError, StoreError
from draftrank.measure.serving_records import ServingResult
from draftrank.store.archive import Archive
from draftrank.store.derived import Derived
from draftrank.store.serving_bundle import SERVING_FILES
from draftrank.store.shared_bundles import import_file
from draftrank.store.store import Store
from served_sessions import a_request, a_round, a_serving_result, a_serving_session, parted_request


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "results.sqlite") as opened:
        yield opened


def test_a_session_comes_back_from_the_store_and_from_its_file_unchanged(store, tmp_path):
    result = a_serving_result()
    store.serving.add_result(result)
    store.serving.add_result(result)
    assert store.serving.results() == (result,)
    changed = result.model_copy(update={"rounds": result.rounds[:-1]})
    with pytest.raises(StoreError, match="other content"):
        store.serving.add_result(changed)
    path = SERVING_FILES.publish(result, tmp_path / "serving")
    assert path.relative_to(tmp_path / "serving").parts[:2] == ("small-target", "small-vllm")
    assert path == SERVING_FILES.publish(result, tmp_path / "serving")
    assert SERVING_FILES.read_all(tmp_path / "serving") == (SERVING_FILES.read(path),) == (result,)
    with Store.open(tmp_path / "two.sqlite") as other:
        import_file(path, other)
        assert other.serving.results() == (result,)


def test_a_session_grows_round_by_round(store):
    session = a_serving_session(finished_at=None)
    store.serving.begin_session(session)
    with pytest.raises(StoreError, match="exists already"):
        store.serving.begin_session(session)
    for one in (a_round(), a_round("ngram", index=1), a_round("ngram", index=1, attempt=1)):
        store.serving.add_round(session.id, one)
        store.serving.add_round(session.id, one)
    with pytest.raises(StoreError, match="another round ngram at concurrency 1, block 1"):
        store.serving.add_round(session.id, a_round("ngram", index=1, wall_s=9.0))
    with pytest.raises(StoreError, match="no arm 'suffix'"):
        store.serving.add_round(session.id, a_round("suffix"))
    judged = a_round("ngram", index=1, requests=(parted_request(), a_request(1)))
    store.serving.judge_round(session.id, judged)
    with pytest.raises(StoreError, match="add it first"):
        store.serving.judge_round(session.id, a_round("ngram", index=7))
    failed = session.arms[2].model_copy(update={"failure": "it ended", "log_tail": "Killed"})
    store.serving.update_arm(session.id, failed)
    store.serving.add_warnings(session.id, ("late", "late"))
    found = store.serving.find_session(session.plan_sha256)
    assert found is not None
    assert (found.arms[2], found.finished_at) == (failed, None)
    assert found.warnings == ("the machine was busy", "late")
    store.serving.finish_session(session.id, "2026-11-30T12:00:00.000Z")
    result = store.serving.result(session.id)
    assert result.session.finished_at == "2026-11-30T12:00:00.000Z"
    assert result.rounds == (a_round(), judged, a_round("ngram", index=1, attempt=1))
    assert store.serving.find_session("0" * 64) is None
    with pytest.raises(StoreError, match="no serving session"):
        store.serving.result("none")


def a_retried_pair():
    """A session whose draft failed to start, and what became of it when that was tried again."""
    late = a_serving_result()
    failed = late.session.arms[2].model_copy(
        update={"failure": "it ended", "log_tail": "Killed", "flags": ()}
    )
    session = late.session.model_copy(
        update={
            "arms": (*late.session.arms[:2], failed),
            "finished_at": "2026-11-30T10:30:00.123Z",
            "warnings": (),
        }
    )
    return ServingResult(
        session=session, rounds=tuple(one for one in late.rounds if one.arm != "ngram")
    ), late


def test_of_two_states_of_a_session_the_later_stays_whichever_comes_first(store, tmp_path):
    early, late = a_retried_pair()
    paths = [SERVING_FILES.publish(one, tmp_path / "serving") for one in (early, late)]
    assert len(set(paths)) == 2
    for path in (*paths, *reversed(paths)):
        import_file(path, store)
    assert store.serving.results() == (late,)
    with Store.open(tmp_path / "two.sqlite") as other:
        for path in reversed(paths):
            import_file(path, other)
        assert other.serving.results() == (late,)
    with Derived(None) as derived:
        for held, folder in ((None, tmp_path / "serving"), (store, None), (store, tmp_path / "serving")):
            assert Archive(held, None, derived, serving_folder=folder).serving == (late,)


def reopened(result):
    """While its failed servers are tried again."""
    return result.model_copy(update={"session": result.session.model_copy(update={"finished_at": None})})


@pytest.mark.parametrize(
    ("change", "contradicts"),
    [
        (lambda late: late, False),
        (reopened, False),
        (lambda late: late.model_copy(update={"rounds": late.rounds[1:]}), True),
        (lambda late: late.model_copy(update={"session": late.session.model_copy(update={"seed": 8})}), True),
        (lambda late: late.model_copy(update={"session": a_serving_session(("suffix",))}), True),
    ],
)
def test_states_of_which_neither_became_the_other_are_refused(store, change, contradicts):
    early, late = a_retried_pair()
    late = change(late)
    store.serving.add_result(early)
    if contradicts:
        with pytest.raises(StoreError, match="contradict each other"):
            store.serving.join_result(late)
        assert store.serving.results() == (early,)
    else:
        store.serving.join_result(late)
        assert store.serving.results() == (late,)


def test_a_state_with_the_same_rounds_and_another_end_is_refused(store):
    early, _ = a_retried_pair()
    store.serving.add_result(early)
    store.serving.join_result(reopened(early))
    assert store.serving.results() == (early,)
    later = early.session.model_copy(update={"finished_at": "2026-11-30T12:00:00.123Z"})
    with pytest.raises(StoreError, match="contradict each other"):
        store.serving.join_result(early.model_copy(update={"session": later}))


def last(data):
    return data["rounds"][-1]["requests"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data["session"].update(target="../../etc"), "session.target"),
        (lambda data: data["session"].update(created_at="../2026"), "no UTC time"),
        (lambda data: data["session"]["server_declared"].update(context=128), "is not the hash"),
        (lambda data: data["session"]["server_declared"].update(token="s"), "is no server"),
        (lambda data: data["session"].update(engine="sglang"), "another engine"),
        (lambda data: data["session"]["arms"].reverse(), "the baseline, its twin and drafts"),
        (lambda data: data["session"]["arms"][2].update(log_tail="a\u202eb"), "not visible"),
        (lambda data: data["session"]["turns"][0].update(prompt="p9"), "no task of the record"),
        (lambda data: data["session"]["turns"].append(data["session"]["turns"][0]), "stands twice"),
        (lambda data: data["session"]["tasks"][0].update(max_new_tokens=3), "more tokens than the task's"),
        (lambda data: data["rounds"][0].update(arm="suffix"), "no arm 'suffix'"),
        (lambda data: data["rounds"][0].update(concurrency=2), "none of the session's"),
        (lambda data: data["rounds"].append(data["rounds"][0]), "stands twice"),
        (lambda data: data["rounds"][0].update(wall_s=0.01), "ends after its round"),
        (lambda data: data["rounds"][0].update(requests=[]), "are none"),
        (lambda data: data["rounds"][0]["requests"][0].update(turn=9), "fewer turns"),
        (lambda data: data["rounds"][0]["requests"][0].update(arrival_tokens=[1, 2, 1]), "4 arrivals"),
        (lambda data: last(data)[0].update(accepted=6), "accepted 6 of 6"),
        (lambda data: last(data)[0]["divergence"].update(index=2), "does not fit its token ids"),
        (lambda data: last(data)[1].pop("failure"), "a failure exactly if it failed"),
        (lambda data: data["rounds"][0].update(attempt=0), "canonical"),
        (lambda data: data["rounds"].reverse(), "canonical"),
        (lambda data: data.update(extra=1), "serving.extra"),
    ],
)
def test_a_file_that_does_not_add_up_is_named_with_its_field(tmp_path, change, told):
    data = json.loads(SERVING_FILES.publish(a_serving_result(), tmp_path).read_text())
    change(data["serving"])
    forged = tmp_path / "forged.json"
    forged.write_text(json.dumps(data))
    with pytest.raises(InvalidInputError, match=told) as error:
        SERVING_FILES.read(forged)
    assert str(forged) in str(error.value)


def test_a_file_that_was_changed_after_it_was_published_shows(tmp_path):
    path = SERVING_FILES.publish(a_serving_result(), tmp_path)
    path.write_text(path.read_text().replace('"wall_s":0.25', '"wall_s":0.15', 1))
    with pytest.raises(InvalidInputError, match="was changed after it was published"):
        SERVING_FILES.read_all(tmp_path)


def test_what_does_not_add_up_is_not_published(tmp_path):
    result = a_serving_result()
    rounds = (result.rounds[0], *result.rounds)
    with pytest.raises(InvalidInputError, match="stands twice"):
        SERVING_FILES.publish(result.model_copy(update={"rounds": rounds}), tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_every_turn_and_round_has_a_line_of_its_own(tmp_path):
    lines = SERVING_FILES.publish(a_serving_result(), tmp_path).read_text().splitlines()
    assert sum(line.lstrip().startswith('{"arm"') for line in lines) == 12
    assert sum('"prompt_tokens":7' in line for line in lines) == 2
