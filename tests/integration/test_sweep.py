"""Sweeps: planned, run in processes of their own, interrupted, killed, and gone on with."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from commands import draftrank, several, start
from draftrank.catalog.workspace import Workspace
from draftrank.jobs.execute import execute
from draftrank.jobs.executors.isolated import WORKER, IsolatedExecutor, Limits, without_network
from draftrank.jobs.executors.ray_cluster import _work_there, pack
from draftrank.jobs.job import Ended
from draftrank.jobs.ledger import Ledger, sweeps
from draftrank.jobs.planning import plan_jobs
from draftrank.jobs.session import RunRequest
from draftrank.measure.records import SessionResult
from draftrank.progress import SilentProgress
from draftrank.store.store import Store
from workspaces import plain_request, write_draft

REQUEST = plain_request("tiny", ("ngram", "shallow"), "quick")


@pytest.fixture(autouse=True)
def unwatched(monkeypatch):
    monkeypatch.setenv("DRAFTRANK_WATCH", "off")


@pytest.fixture
def workspace(workspace_root) -> Workspace:
    return Workspace.open(workspace_root)


def run_isolated(workspace, requests, limits=None):
    plan = plan_jobs(workspace, requests)
    folder = workspace.state / "sweeps" / "one"
    ledger = Ledger.begin(folder, plan)
    with Store.open(workspace.store_url) as store:
        executor = IsolatedExecutor(workspace, folder, limits)
        execute(ledger, executor, store, SilentProgress())
        executor.close()
    return ledger


def test_the_plan_shares_what_sessions_share(workspace, tmp_path):
    plan = plan_jobs(workspace, [REQUEST, plain_request("tiny", ("ngram", "shallow"), "quick", dtype="bf16")])
    kinds = [job.kind for job in plan.jobs]
    assert kinds == ["fetch", "build", "session", "session"]
    fetch, build, *sessions = plan.jobs
    assert build.needs == (fetch.id,)
    for session in sessions:
        assert (session.needs, session.after) == ((fetch.id,), (build.id,))
    Ledger.begin(tmp_path / "sweep", plan)
    assert Ledger.read(tmp_path / "sweep").jobs == plan.jobs


def test_sessions_of_as_many_drafts_are_two_jobs_and_one_job_fetches_for_both(workspace):
    names = tuple(
        write_draft(workspace.root, f"ngram-{n}", f"kind: ngram\n  max_ngram: {n}").stem for n in range(3, 11)
    )
    halves = names[:4], names[4:]
    fetch, *sessions = plan_jobs(workspace, [plain_request("tiny", half, "quick") for half in halves]).jobs
    assert [(job.kind, job.request.drafts) for job in sessions] == [("session", half) for half in halves]
    assert {job.needs for job in sessions} == {(fetch.id,)}
    assert (fetch.kind, fetch.request.drafts) == ("fetch", names)


def test_a_dry_run_prints_the_plan_and_does_nothing(workspace_root):
    said = draftrank(workspace_root, "sweep", "--dry-run", "--json")
    assert said.code == 0
    assert [job["kind"] for job in said.json["jobs"]] == ["fetch", "build", "build", "session"]
    assert said.json["jobs"][1]["estimate_s"] > 0
    assert "4 jobs" in said.out
    assert {path.name for path in (workspace_root / ".draftrank").iterdir()} <= {"derived.sqlite"}


def test_what_is_measured_is_left_out(measured_root):
    said = draftrank(measured_root, "sweep", "--dry-run", "--json").json
    assert said["jobs"] == []
    assert "has measured it" in said["left_out"][0]["reason"]


def test_what_is_measured_of_a_gguf_file_is_left_out(measured_root):
    workspace = Workspace.open(measured_root)
    with Store.open(workspace.store_url) as store:
        (found,) = store.results()
    session = found.session.model_copy(update={"backend": "llama.cpp", "dtype": "q4_1"})
    request = RunRequest("tiny", ("ngram",), "quick", backend="llama.cpp", device=session.device)
    plan = plan_jobs(workspace, [request], [SessionResult(session=session, trials=found.trials)])
    assert plan.jobs == ()


def test_what_is_built_is_left_out(measured_root):
    said = draftrank(measured_root, "sweep", "--fresh", "--dry-run", "--json").json
    assert [job["kind"] for job in said["jobs"]] == ["fetch", "session"]
    built = {one["id"] for one in said["left_out"]}
    assert built == {"build tiny/int8", "build tiny/shallow"}
    recipe = measured_root / "drafts" / "tiny" / "shallow.yaml"
    recipe.write_text(recipe.read_text().replace("keep: 2", "keep: 1"))
    said = draftrank(measured_root, "sweep", "--fresh", "--dry-run", "--json").json
    assert [job["id"] for job in said["jobs"] if job["kind"] == "build"] == ["build tiny/shallow"]
    again = draftrank(measured_root, "sweep", "--dry-run", "--fresh", "--json").json
    assert [job["kind"] for job in again["jobs"]].count("session") == 1
    assert all(job["estimate_s"] for job in again["jobs"] if job["kind"] == "session")


def test_a_killed_job_is_tried_again_and_the_sweep_ends_with_a_board_and_its_record(workspace_root):
    too_deep = "kind: draft_model\n  steps:\n    - {kind: drop_layers, keep: 99, select: ends}"
    write_draft(workspace_root, "broken", too_deep)
    process = start(workspace_root, "sweep", "-d", "ngram", "-d", "broken", "--json")
    store_file = workspace_root / ".draftrank" / "results.sqlite"
    while process.poll() is None and not store_file.is_file():
        time.sleep(0.05)
    before = ()
    with Store.open(store_file) as store:
        while process.poll() is None and not before:
            time.sleep(0.05)
            before = {trial for session in store.sessions() for trial in store.trials(session.id)}
    killed = workers(process.pid)
    for worker in killed:
        os.kill(worker, signal.SIGKILL)
    done = process.finish()
    assert killed
    assert done.code == 1, done.err  # one draft could not be built
    jobs = {job["id"]: job for job in done.json["jobs"]}
    assert jobs.pop("build tiny/broken")["state"] == "failed"
    assert {job["state"] for job in jobs.values()} == {"done"}
    (session,) = [job for job in jobs.values() if job["kind"] == "session"]
    assert session["attempts"] == 2
    with Store.open(store_file) as store:
        (result,) = store.results()
    kept = {trial.key: trial.token_ids for trial in result.trials}
    assert all(kept[trial.key] == trial.token_ids for trial in before)
    assert len(kept) == len(result.trials)
    board, status = several(workspace_root, ["board", "--json"], ["status", "--json"])
    assert {row["draft"] for row in board.json["rows"]} == {"ngram", "broken"}
    assert status.code == 0
    assert status.json["running"] is False
    assert {job["state"] for job in status.json["jobs"]} == {"done", "failed"}
    assert "cannot be kept" in next(job["reason"] for job in status.json["jobs"] if job["state"] == "failed")


def workers(pid):
    found = []
    for one in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it may end while it is looked at
            if WORKER in " ".join(one.cmdline()):
                found.append(one.pid)
    return found


def test_stopping_keeps_what_was_measured_and_the_command_goes_on(workspace_root):
    arguments = ("sweep", "-d", "ngram", "--json")
    process = start(workspace_root, *arguments)
    while process.poll() is None and not workers(process.pid):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stopped = process.finish()
    assert stopped.code == 130
    (folder,) = sweeps(workspace_root / ".draftrank")
    assert set(Ledger.read(folder).counts) <= {"done", "cancelled"}
    assert draftrank(workspace_root, *arguments).code == 0


def test_a_machine_of_a_cluster_keeps_a_stopped_session_and_resumes_it(workspace_root, monkeypatch, tmp_path):
    monkeypatch.setenv("DRAFTRANK_STATE", str(tmp_path / "machine"))
    monkeypatch.setenv("DRAFTRANK_DATA", str(workspace_root))
    request = plain_request("tiny", ("ngram",), fresh=True)
    *_, job = plan_jobs(Workspace.open(workspace_root), [request]).jobs
    files, measured = pack(workspace_root), []
    add_trial = Store.add_trial

    def interrupted(store, session, trial):
        if len(measured) == 5:
            raise KeyboardInterrupt
        add_trial(store, session, trial)
        measured.append(trial)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "add_trial", interrupted)
        stopped = _work_there(job, 1, files, {})
    assert (stopped.end, stopped.results) == ("cancelled", ())
    done = _work_there(job, 2, files, {})
    (result,) = done.results
    assert (done.end, done.session) == ("done", result.session.id)
    times = {trial.key: trial.decode_s for trial in result.trials}
    assert all(times[trial.key] == trial.decode_s for trial in measured)
    assert {trial.process for trial in result.trials} == {0, 1}
    with Store.open(tmp_path / "store.sqlite") as store:
        store.join_result(result)
        assert store.result(result.session.id).session.finished_at is not None


class InterruptedAtTheStart(IsolatedExecutor):
    """Ctrl-C comes when a job's process is there and its number is not yet noted."""

    def start(self, job, attempt):
        popen = subprocess.Popen

        def interrupted(*arguments, **options):
            process = popen(*arguments, **options)
            os.kill(os.getpid(), signal.SIGINT)
            return process

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(subprocess, "Popen", interrupted)
            super().start(job, attempt)


@pytest.fixture
def interruptible():
    """SIGINT as at a terminal: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_job_that_is_just_beginning_is_stopped_too(workspace):
    folder = workspace.state / "sweeps" / "one"
    ledger = Ledger.begin(folder, plan_jobs(workspace, [REQUEST]))
    executor = InterruptedAtTheStart(workspace, folder)
    with Store.open(workspace.store_url) as store, pytest.raises(KeyboardInterrupt):
        execute(ledger, executor, store, SilentProgress())
    executor.close()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    first, *others = (ledger.facts[job.id] for job in ledger.jobs)
    assert (first.state, first.reason) == ("cancelled", "it was stopped")
    assert {facts.reason for facts in others} == {"the sweep was stopped"}
    assert not workers(os.getpid())


@pytest.mark.parametrize(
    ("limits", "reason"),
    [(Limits(memory_bytes=50_000_000), "of memory"), (Limits(seconds=0.5), "took more than")],
)
def test_a_job_beyond_its_limits_is_ended_and_not_tried_again(workspace, limits, reason):
    ledger = run_isolated(workspace, [REQUEST], limits)
    first, *others = (ledger.facts[job.id] for job in ledger.jobs)
    assert (first.state, first.attempts) == ("failed", 1)
    assert reason in first.reason
    assert {facts.state for facts in others} == {"skipped"}


def test_a_session_does_not_build_again_what_could_not_be_built(workspace, monkeypatch):
    from draftrank.building import pipeline
    from draftrank.jobs.session import plan_run

    build_draft = pipeline.build_draft
    built = []

    def noted(recipe, *arguments, **options):
        built.append(recipe.id)
        return build_draft(recipe, *arguments, **options)

    monkeypatch.setattr(pipeline, "build_draft", noted)
    plan = plan_run(workspace, REQUEST, unbuilt={"shallow": "it took more than 2 s"})
    assert built == ["ngram"]
    failures = {arm.recipe.id: arm.failure for arm in plan.drafts}
    assert failures == {"ngram": None, "shallow": "build failed: it took more than 2 s"}


def test_an_isolated_job_reaches_nobody():
    words = without_network()
    if not words:
        pytest.skip("this system gives no process a network of its own")
    with socket.create_server(("127.0.0.1", 0)) as server:
        ask = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 5)"
        assert subprocess.run([sys.executable, "-c", ask], check=False).returncode == 0
        alone = subprocess.run(
            [*words, sys.executable, "-c", ask], capture_output=True, text=True, check=False
        )
    assert alone.returncode == 1
    assert "Network is unreachable" in alone.stderr


class Scripted:
    """An executor whose jobs end as they are told to."""

    def __init__(self, **ends):
        self.ends, self.started, self.ended, self.unbuilt = ends, [], [], ()

    def has_room(self, job):
        return not self.ended

    def start(self, job, attempt):
        self.started.append((job.kind, attempt))
        self.unbuilt += job.unbuilt
        told = self.ends.get(job.kind, ["done"])
        self.ended.append(Ended(job.id, told[min(attempt, len(told)) - 1], "so it was told"))

    def wait(self, seconds):
        ended, self.ended = self.ended, []
        return ended * 2  # a word that comes twice counts once

    def cancel(self):
        pass

    def close(self):
        pass


@pytest.mark.parametrize(
    ("ends", "states", "starts"),
    [
        ({}, ["done", "done", "done"], 3),
        ({"build": ["lost", "lost", "done"]}, ["done", "done", "done"], 5),
        ({"build": ["lost"]}, ["done", "failed", "done"], 5),
        ({"build": ["failed"]}, ["done", "failed", "done"], 3),
        ({"fetch": ["failed"]}, ["failed", "skipped", "skipped"], 1),
    ],
)
def test_jobs_run_in_their_order_and_are_tried_again_where_it_helps(
    workspace, tmp_path, ends, states, starts
):
    ledger = Ledger.begin(tmp_path / "sweep", plan_jobs(workspace, [REQUEST]))
    executor = Scripted(**ends)
    with Store.open(tmp_path / "store.sqlite") as store:
        execute(ledger, executor, store, SilentProgress())
    assert [ledger.facts[job.id].state for job in ledger.jobs] == states
    assert len(executor.started) == starts
    failed = states[1] == "failed"  # the session goes on without the draft, and does not build it again
    assert executor.unbuilt == ((("shallow", "so it was told"),) if failed else ())
    again = Ledger.read(tmp_path / "sweep")
    assert again.facts == ledger.facts
    assert not again.runs


def test_a_sweep_that_is_none_is_named(workspace_root):
    assert draftrank(workspace_root, "status").code == 2
    (workspace_root / ".draftrank" / "sweeps" / "x").mkdir(parents=True)
    (workspace_root / ".draftrank" / "sweeps" / "x" / "plan.json").write_text(json.dumps([{"id": 1}]))
    said = draftrank(workspace_root, "status")
    assert said.code == 2
    assert "holds no sweep" in said.err
