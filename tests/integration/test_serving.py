"""`draftrank serve-bench` against real server processes that serve a toy model, whole and broken in every way we know."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from commands import draftrank, several, start
from draftrank.catalog.workspace import Workspace
from draftrank.errors import DraftrankError, InvalidInputError, MissingDataError
from draftrank.measure.records import BASELINE, CONTROL
from draftrank.measure.serving_records import Round, ServingArm, ServingResult
from draftrank.measure.sessions.schedule import round_order
from draftrank.progress import SILENT
from draftrank.serving.http import ServerError
from draftrank.store.serving_bundle import SERVING_FILES
from draftrank.store.shared_bundles import import_file
from draftrank.store.store import Store
from draftrank.workflows.serve_bench import ServeRequest, serve_bench
from draftrank.workflows.serving_arms import Servers
from draftrank.workflows.serving_session import Run, groups
from listening import Listening
from model_server import ModelServer, serving
from serving_workspace import SERVER, declare_method, declare_server, engine

TURNS = 4


@pytest.fixture
def root(workspace_root) -> Path:
    declare_server(workspace_root)
    declare_method(workspace_root)
    return workspace_root


@pytest.fixture
def bench(root, monkeypatch):
    """Measures in this process: (fault, words of the broken commands, changes of the request) → result."""
    monkeypatch.setenv("DRAFTRANK_WATCH", "off")
    monkeypatch.setenv("DRAFTRANK_OFFLINE", "1")

    def run(fault: str = "", which: str = "speculative-config", **asked) -> ServingResult:
        for name, value in engine(root, fault, which).items():
            monkeypatch.setenv(name, value)
        values = {"drafts": ("ngram", "method"), "concurrencies": (2,), "rounds": 2, "idle_s": 20.0}
        workspace, progress = Workspace.open(root), asked.pop("progress", SILENT)
        with Store.open(workspace.store_url) as store:
            return serve_bench(workspace, ServeRequest("tiny", "toy", **(values | asked)), store, progress)

    return run


def stored(root: Path) -> ServingResult:
    with Store.open(root / ".draftrank" / "results.sqlite") as store:
        (result,) = store.serving.results()
        return result


def rounds_of(result: ServingResult, arm: str) -> list[Round]:
    return [one for one in result.rounds if one.arm == arm]


def arm_of(result: ServingResult, arm: str) -> ServingArm:
    return next(one for one in result.session.arms if one.id == arm)


def servers_of(root: Path) -> list[psutil.Process]:
    """Server processes of a workspace that still run."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any("model_server.py" in word for word in words) and str(root / "models" / "tiny") in words:
            found.append(process)
    return found


def test_one_command_measures_and_the_record_travels(root):
    asked = ["serve-bench", "tiny", "--server", "toy", "-d", "ngram", "-d", "method"]
    asked += ["-c", "4", "-c", "1", "--rounds", "2", "--json"]
    written = [
        *asked,
        *["--format", "vllm-bench", "--format", "aiperf", "--format", "guidellm", "--to", "bench"],
    ]
    found, again, nowhere = several(root, asked, written, [*asked, "--format", "aiperf"], **engine(root))
    assert found.code == 0, found
    assert "plain server tok/s" in found.out
    assert "has measured this already" in again.err
    assert again.json == found.json
    assert nowhere.code == 2
    assert "--format and --to" in nowhere.err
    bench = json.loads((root / "bench" / "vllm-bench" / "ngram-4.json").read_text())
    summary = json.loads((root / "bench" / "aiperf" / "ngram-4" / "profile_export_aiperf.json").read_text())
    report = json.loads((root / "bench" / "guidellm" / "ngram" / "benchmarks.json").read_text())
    document = found.json
    assert bench["completed"] == summary["request_count"]["avg"] == 16
    assert [one["metrics"]["request_totals"]["successful"] for one in report["benchmarks"]] == [8, 16]
    assert document["best_k"] == {}
    assert (document["finished"], document["rounds"], document["failures"]) == (True, 16, {})
    assert set(document["tokens_per_s"]) == {BASELINE, CONTROL, "ngram", "method"}
    result = stored(root)
    session = result.session
    assert session.concurrencies == (1, 4)
    assert len(session.turns) == TURNS
    assert (session.engine, session.engine_version, session.dtype) == ("vllm", "0.32.0", "fp32")
    for arm in session.arms:
        assert arm.start_s is not None
        assert str(root) not in json.dumps(arm.model_dump(mode="json"))
        assert "TARGET" in arm.flags
    for concurrency in (1, 4):
        for index in (0, 1):
            block = [one for one in result.rounds if (one.concurrency, one.index) == (concurrency, index)]
            block.sort(key=lambda one: one.position)
            names = [BASELINE, CONTROL, "ngram", "method"]
            drawn = round_order(names, session.plan_sha256, concurrency, index)
            assert tuple(one.arm for one in block) == drawn
            orders = {tuple(request.turn for request in one.requests) for one in block}
            assert len(orders) == 1
            times = 1 if concurrency == 1 else 2  # eight requests keep four in flight
            assert Counter(*orders) == dict.fromkeys(range(TURNS), times)
    for one in result.rounds:
        assert (one.counters is not None) == (one.arm in ("ngram", "method"))
        assert one.memory_bytes
        for request in one.requests:
            assert (request.token_ids, request.disagreement) == (None, None)
            assert (request.accepted is not None) == (one.arm in ("ngram", "method"))
    published, imported, refused = several(
        root,
        ["publish", session.id, "--json"],
        ["import", str(root / "leaderboard" / "serving")],
        ["run", "--draft", "method"],
    )
    (file,) = published.json["files"]
    assert Path(file).parent == root / "leaderboard" / "serving" / "tiny" / "toy"
    assert SERVING_FILES.read(Path(file)) == result
    assert imported.code == 0
    assert refused.code == 2
    assert "draftrank serve-bench tiny --draft method" in refused.err


def test_tokens_behind_the_end_count_for_the_server_and_not_for_us(bench):
    result = bench()
    for one in rounds_of(result, "ngram"):
        assert one.counters is not None
        accepted = [request.accepted or 0 for request in one.requests]
        assert sum(accepted) <= one.counters.accepted
        for request in one.requests:  # tokens = 1 + steps + accepted: each event is a step
            assert request.tokens == len(request.arrival_tokens) + (request.accepted or 0)


def test_counts_that_contradict_the_output_are_recorded_with_every_request(bench):
    result = bench("wrong counts")
    told = [request.disagreement for one in rounds_of(result, "ngram") for request in one.requests]
    assert all("accepted" in (one or "") for one in told)
    assert {request.disagreement for request in rounds_of(result, BASELINE)[0].requests} == {None}


def test_a_server_that_dies_in_a_round_is_out_and_the_others_go_on(bench, tmp_path):
    result = bench("dies after 12", "ngram")
    arm = arm_of(result, "ngram")
    assert "the server ended in a round" in (arm.failure or "")
    assert "ended with code 7" in (arm.failure or "")
    assert "listening" in (arm.log_tail or "")
    whole, broken = rounds_of(result, "ngram")
    assert "failed" not in {request.end for request in whole.requests}
    assert broken.requests[-1].end == "failed"
    assert all(len(rounds_of(result, name)) == 2 for name in (BASELINE, CONTROL, "method"))
    assert result.session.finished_at is not None
    assert SERVING_FILES.read(SERVING_FILES.publish(result, tmp_path)) == result


def test_counters_that_go_back_show_a_server_that_started_anew(bench):
    result = bench("resets counters after 11", "ngram")
    started = [one.server_started for one in rounds_of(result, "ngram")]
    assert max(started) > min(started) or started[0] > 1
    assert any(one.counters is None for one in rounds_of(result, "ngram"))
    assert {one.server_started for one in rounds_of(result, "method")} == {1}


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("hangs after 12", "nothing came"),
        ("cut after 12", "broke off"),
        ("no end after 12", "without saying why"),
    ],
)
def test_requests_that_hang_or_break_off_are_failed_ones_and_then_the_arm_is_out(bench, fault, told):
    result = bench(fault, "ngram", idle_s=0.5)
    failures = [
        request.failure or ""
        for one in rounds_of(result, "ngram")
        for request in one.requests
        if request.end == "failed"
    ]
    assert any(told in failure for failure in failures)
    assert "every request of a round failed" in (arm_of(result, "ngram").failure or "") or len(failures) < 8
    assert len(rounds_of(result, "method")) == 2


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("wrong model", "serves another"),
        ("ends at once", "ended before it was ready"),
        ("refuses", "too long"),
    ],
)
def test_a_server_that_does_not_come_up_is_a_failed_arm(bench, fault, told):
    result = bench(fault, "ngram")
    arm = arm_of(result, "ngram")
    assert told in (arm.failure or "")
    assert arm.log_tail is not None
    assert not rounds_of(result, "ngram")
    assert len(rounds_of(result, "method")) == 2


def test_the_same_command_tries_a_server_that_did_not_start_again_and_keeps_what_was_measured(root):
    asked = [
        "serve-bench",
        "tiny",
        "--server",
        "toy",
        "-d",
        "ngram",
        "-d",
        "method",
        "-c",
        "2",
        "--rounds",
        "2",
    ]
    failed = draftrank(root, *asked, **engine(root, "ends at once", "ngram"))
    before = stored(root)
    assert failed.code == 1
    assert "the same command tries it again" in failed.out
    assert arm_of(before, "ngram").failure is not None
    vain = draftrank(root, *asked, **engine(root, "ends at once", "ngram"))
    assert (vain.code, "trying again what failed: ngram" in vain.err) == (1, True)
    assert stored(root) == before
    mended = draftrank(root, *asked, **engine(root))
    assert mended.code == 0, mended
    after = stored(root)
    assert (arm_of(after, "ngram").failure, arm_of(after, "ngram").log_tail) == (None, None)
    new = [one for one in after.rounds if one not in before.rounds]
    assert len(new) == len(after.rounds) - len(before.rounds)
    assert {(one.arm, one.index) for one in new} == {
        (arm, index) for arm in (BASELINE, "ngram") for index in (2, 3)
    }
    assert any("ngram was tried again after it had failed" in text for text in after.session.warnings)
    again = draftrank(root, *asked, **engine(root))
    assert (again.code, "has measured this already" in again.err) == (0, True)
    assert stored(root) == after


def test_a_server_that_died_in_a_round_is_tried_again_in_blocks_of_its_own(bench):
    before = bench("dies after 12", "ngram")
    assert arm_of(before, "ngram").failure is not None
    after = bench()
    assert after.session.id == before.session.id
    assert arm_of(after, "ngram").failure is None
    assert all(one in after.rounds for one in before.rounds)
    assert [one.index for one in rounds_of(after, "ngram")] == [0, 1, 2, 3]
    assert [one.index for one in rounds_of(after, BASELINE)] == [0, 1, 2, 3]
    assert [one.index for one in rounds_of(after, "method")] == [0, 1]


def test_a_session_that_was_published_before_its_failed_server_was_tried_again_stays_one_session(bench, root):
    folder = root / "leaderboard" / "serving"
    early = SERVING_FILES.publish(bench("dies after 12", "ngram"), folder)
    after = bench()
    late = SERVING_FILES.publish(after, folder)
    workspace = Workspace.open(root)
    with Store.open(workspace.store_url) as here, Store.open(root / "other.sqlite") as other:
        for path in (early, late):
            import_file(path, here)
            import_file(path, other)
        assert here.serving.results() == other.serving.results() == (after,)


def test_a_try_that_was_interrupted_goes_on_in_its_own_blocks(bench, monkeypatch):
    before = bench("dies after 12", "ngram")
    measure = Run._round
    with monkeypatch.context() as patched:

        def interrupted(run, place):
            if place.index == 3:
                raise KeyboardInterrupt
            return measure(run, place)

        patched.setattr(Run, "_round", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bench()
    after = bench()
    assert after.session.finished_at is not None
    assert all(one in after.rounds for one in before.rounds)
    assert [one.index for one in rounds_of(after, "ngram")] == [0, 1, 2, 3]
    assert {one.process for one in rounds_of(after, "ngram")} == {0, 1, 2}


def test_a_session_that_the_same_command_can_no_longer_resume_says_what_has_changed(bench, root):
    told = Listening()
    first = bench("dies after 12", "ngram", progress=told)
    with pytest.raises(ServerError):
        bench("dies after 15", "max-num-seqs", fresh=True, progress=told)
    assert not any("cannot be resumed" in text for text in told.messages)
    declare_method(root, method="medusa")
    new = bench("dies after 12", "ngram", progress=told)
    assert new.session.id != first.session.id
    (said,) = [text for text in told.messages if "cannot be resumed" in text]
    assert "because of what has changed since: the recipe of method, the speculation of method;" in said
    told.messages.clear()
    bench(progress=told)  # it is resumed
    bench(rounds=3, progress=told)  # a complete one needs no word
    assert not any("cannot be resumed" in text for text in told.messages)


def test_a_build_that_was_mended_is_said_to_begin_anew(bench, monkeypatch):
    told = Listening()

    def broken(*_):
        raise MissingDataError("its repository is gone")

    with monkeypatch.context() as patched:
        patched.setattr("draftrank.workflows.serve_bench.export_draft", broken)
        first = bench(drafts=("method",), progress=told)
    again = bench(drafts=("method",), progress=told)
    assert again.session.id != first.session.id
    (said,) = [text for text in told.messages if "cannot be resumed" in text]
    assert first.session.id in said
    assert "the speculation of method" in said


def test_a_slow_server_is_measured_as_such(bench):
    result = bench("slow", "ngram")
    slow, fast = (min(one.wall_s for one in rounds_of(result, arm)) for arm in ("ngram", "method"))
    assert slow > fast


def test_an_output_that_parts_is_judged_by_the_plain_server(bench):
    result = bench("parts", "ngram")
    for request in (request for one in rounds_of(result, "ngram") for request in one.requests):
        divergence = request.divergence
        assert divergence is not None
        assert divergence.index == 3
        assert divergence.plain_gap == 0.0
        assert divergence.gap == pytest.approx(1.5)
    assert all(request.divergence is None for one in rounds_of(result, "method") for request in one.requests)


def test_a_plain_server_that_dies_ends_the_session_which_then_goes_on(bench, root):
    with pytest.raises(ServerError, match="ended with code 7"):
        bench("dies after 15", "max-num-seqs", drafts=("ngram",), rounds=3)
    broken = stored(root)
    assert broken.session.finished_at is None
    assert broken.rounds
    failed = [arm.id for arm in broken.session.arms if arm.failure]
    assert BASELINE in failed
    result = bench(drafts=("ngram",), rounds=3)
    assert result.session.id == broken.session.id
    assert arm_of(result, BASELINE).failure is None
    kept = {one.key: one for one in result.rounds}
    assert all(kept[one.key] == one for one in broken.rounds)
    assert {one.process for one in result.rounds} == {0, 1}
    assert len(rounds_of(result, BASELINE)) == 3
    assert not servers_of(root)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_command_leaves_no_server_and_goes_on(root, number):
    asked = ("serve-bench", "tiny", "--server", "toy", "-d", "ngram", "-c", "1", "--rounds", "4", "--json")
    running = start(root, *asked, **engine(root, "slow", "max-num-seqs"))
    until = time.monotonic() + 120
    while len(_rounds(root)) < 4:
        assert time.monotonic() < until
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(number)
    ended = running.finish()
    assert ended.code == (130 if number == signal.SIGINT else -9), ended
    while servers_of(root):
        assert time.monotonic() < until
        time.sleep(0.05)
    before = _rounds(root)
    result = draftrank(root, *asked, **engine(root))
    assert result.code == 0, result
    after = {one.key: one for one in _rounds(root)}
    assert len(after) == 12
    assert all(after[one.key] == one for one in before)
    assert {one.process for one in after.values()} == {0, 1}


def _rounds(root: Path) -> tuple[Round, ...]:
    if not (root / ".draftrank" / "results.sqlite").exists():
        return ()
    with Store.open(root / ".draftrank" / "results.sqlite") as store:
        results = store.serving.results()
        return results[0].rounds if results else ()


def test_where_memory_is_short_drafts_are_measured_in_groups_each_with_the_plain_server(bench, monkeypatch):
    most: list[int] = []
    opened = Servers.open

    def counted(self, *given):
        found = opened(self, *given)
        most.append(len(self.opened))
        return found

    monkeypatch.setattr(Servers, "open", counted)
    monkeypatch.setattr(Servers, "hold", lambda *_: 1)
    result = bench()
    assert max(most) == 2
    indexes = {arm.id: [one.index for one in rounds_of(result, arm.id)] for arm in result.session.arms}
    assert indexes == {BASELINE: [0, 1, 2, 3, 4, 5], CONTROL: [0, 1], "ngram": [2, 3], "method": [4, 5]}
    assert "in 3 groups" in result.session.warnings[0]
    monkeypatch.setattr(Servers, "hold", lambda *_: 0)
    with pytest.raises(DraftrankError, match="memory holds one server"):
        bench(fresh=True)


def test_arms_stay_in_their_group_when_a_session_goes_on():
    arms = [ServingArm(id=name, kind="draft", draft_id=name) for name in "abcd"]

    def one(arm: str, index: int) -> Round:
        return Round.model_construct(arm=arm, index=index)

    def named(found: dict[int, list[ServingArm]]) -> dict[int, str]:
        return {number: "".join(arm.id for arm in group) for number, group in found.items()}

    assert named(groups(arms, [], 6, 3)) == {0: "abc", 1: "d"}
    assert named(groups(arms, [one("a", 0)], 6, 3)) == {0: "abc", 1: "d"}  # its first block was not complete
    assert named(groups(arms, [one("a", 0), one("b", 3)], 6, 3)) == {0: "ab", 1: "cd"}
    assert named(groups(arms, [one(arm, 0) for arm in "abc"] + [one("d", 7)], 6, 2)) == {0: "abc", 1: "d"}
    assert groups([], [], 6, 3) == {0: []}


def test_a_disturbed_block_is_measured_again_at_most_twice(bench, monkeypatch):
    told = iter(["another program", None, "noise", "noise", "noise"])
    monkeypatch.setattr(Run, "_disturbed", lambda *_: next(told))
    result = bench(drafts=("ngram",))
    attempts = {(one.index, one.attempt) for one in rounds_of(result, "ngram")}
    assert attempts == {(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)}
    assert len(result.rounds) == 5 * 3


def test_several_k_are_arms_of_their_own_and_open_loops_are_told(bench):
    result = bench(drafts=("method",), k=(2, 5), rate=50.0, prompts=1)
    assert [arm.id for arm in result.session.arms][2:] == ["method-k2", "method-k5"]
    assert arm_of(result, "method-k5").speculation["num_speculative_tokens"] == 5
    assert {one.rate for one in result.rounds} == {50.0}
    assert result.session.suite == "quick-custom"
    assert len({turn.prompt for turn in result.session.turns}) == 1


def test_tune_k_measures_a_few_k_unless_some_are_named(root):
    asked = [
        "serve-bench",
        "tiny",
        "--server",
        "toy",
        "-d",
        "method",
        "--prompts",
        "1",
        "--rounds",
        "2",
        "--json",
    ]
    tuned, named = several(root, [*asked, "--tune-k"], [*asked, "--tune-k", "--k", "3"], **engine(root))
    assert set(tuned.json["tokens_per_s"]) == {BASELINE, CONTROL, *(f"method-k{k}" for k in (1, 2, 4, 8))}
    assert list(tuned.json["best_k"]) == ["method"]
    assert "best k of method: " in tuned.out
    assert set(named.json["tokens_per_s"]) == {BASELINE, CONTROL, "method"}
    assert "best k" not in named.out


def test_servers_that_run_already_are_measured_without_being_started(bench, root, monkeypatch, tmp_path):
    plain, drafted = ModelServer(name="theirs"), ModelServer(name="theirs", script=(1, 0))
    with serving(plain) as one, serving(drafted) as other:
        attach = f'{{url: "http://127.0.0.1:{one}", drafts: {{ngram: "http://127.0.0.1:{other}"}}, token_env: THEIR_TOKEN}}'
        declare_server(root, SERVER + f"attach: {attach}\n")
        with pytest.raises(InvalidInputError, match="THEIR_TOKEN"):
            bench(drafts=("ngram",))
        monkeypatch.setenv("THEIR_TOKEN", "s3cret")
        with pytest.raises(InvalidInputError, match="no server that runs the draft 'method'"):
            bench()
        with pytest.raises(InvalidInputError, match="run already, each with a k of its own"):
            bench(drafts=("ngram",), k=(2, 4))
        result = bench(drafts=("ngram",))
    assert plain.authorizations == drafted.authorizations == {"Bearer s3cret"}
    assert {asked["model"] for asked in drafted.requests} == {"theirs"}
    assert {(arm.start_s, arm.flags, arm.failure) for arm in result.session.arms} == {(None, (), None)}
    assert {(one.server_cpu, one.memory_bytes) for one in result.rounds} == {(None, None)}
    text = SERVING_FILES.publish(result, tmp_path).read_text()
    assert "s3cret" not in text + (root / ".draftrank" / "results.sqlite").read_bytes().decode("latin-1")
    assert "its own twin" in text


def test_a_draft_that_cannot_be_exported_is_a_failed_arm(bench, root, monkeypatch):
    def broken(*_):
        raise MissingDataError("its repository is gone")

    monkeypatch.setattr("draftrank.models.target_folder.ensure_model", broken)
    text = (root / "drafts" / "tiny" / "method.yaml").read_text()
    source = "method: mtp\n  source: {kind: local, path: models/tiny}"
    (root / "drafts" / "tiny" / "method.yaml").write_text(text.replace("method: mtp", source))
    result = bench()
    assert "its repository is gone" in (arm_of(result, "method").failure or "")
    assert len(rounds_of(result, "ngram")) == 2


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"concurrencies": (9,)}, "works on up to 8 at once"),
        ({"drafts": ("early-exit",)}, "no other engine has drafts of the kind 'early_exit'"),
        ({"drafts": ("nothing",)}, "no draft 'nothing'"),
        ({"rounds": 0}, "nothing would be measured"),
        ({"rate": 0.0}, "is not above 0"),
        ({"k": (99,)}, "99 is not from 1"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_starts(bench, root, asked, told):
    with pytest.raises(InvalidInputError, match=told):
        bench(**asked)
    assert not (root / ".draftrank" / "logs").exists()


def test_a_method_that_the_engine_does_not_have_is_refused(bench, root):
    declare_method(root, method="mind-reading")
    with pytest.raises(InvalidInputError, match="vllm has no method 'mind-reading'"):
        bench()
