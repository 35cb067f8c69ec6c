"""What `draftrank doctor` and `draftrank show` say of the machine."""

from __future__ import annotations

import pytest

from draftrank.board.ranking import build_boards
from draftrank.cli.doctor_machine import look_at_machine
from draftrank.cli.session_facts import print_session
from draftrank.measure.evidence import Conditions, Environment
from draftrank.measure.machine import conditions, environment
from draftrank.measure.summaries.summary import UNWATCHED, summarise
from unit.board.builders import result


@pytest.fixture
def doctor(monkeypatch):
    """The findings on a machine of this environment and these conditions, by what was looked at."""

    def look(now=None, **facts):
        monkeypatch.setattr(environment, "read_environment", lambda _: Environment(**facts))
        monkeypatch.setattr(conditions, "LOOK_S", 0.0)
        monkeypatch.setattr(conditions.Watch, "end", lambda _: now or Conditions(others_cpus=0.0))
        return {finding.what: finding for finding in look_at_machine()}

    return look


@pytest.mark.parametrize("sets", [("avx2", "avx512_bf16"), ("amx_tile", "amx_bf16")])
def test_instructions_for_bf16_are_seen(doctor, sets):
    assert doctor(instruction_sets=sets)["bf16"].found.startswith("the processor has instructions for it")


def test_a_machine_in_order_has_no_warnings(doctor, monkeypatch):
    monkeypatch.delenv("DRAFTRANK_WATCH")
    found = doctor(
        governor="performance",
        frequency_max_hz=3.5e9,
        quota_cpus=64.0,
        memory_limit_bytes=8 << 30,
        memory_available_bytes=9 << 30,
        instruction_sets=("avx2", "fma"),
        load_average=0.1,
    )
    assert "avx2, fma" in found["processor"].found
    assert "--native" in found["bf16"].found
    assert found["governor"].found == "performance, up to 3.50 GHz"
    assert found["quota"].found == "the container may use 64 processors"
    assert found["memory limit"].found == "the container may hold 8.0 GiB"
    assert "load average 0.10" in found["load"].found
    warned = {what for what, finding in found.items() if finding.status == "warning"}
    assert warned <= {"memory", "threads"}, "what is left depends on the machine that runs the tests"


def test_each_warning_says_what_to_do(doctor):
    now = Conditions(others_cpus=1.9, steal=0.3, quota_throttled=0.5, memory_stalled=0.2)
    found = doctor(now, governor="powersave", quota_cpus=0.5, memory_available_bytes=1 << 30)
    warned = {what: finding.fix for what, finding in found.items() if finding.status == "warning"}
    assert {"governor", "quota", "memory", "load", "disturbed", "throttled"} <= warned.keys()
    assert all(warned.values())
    assert "cpupower" in warned["governor"]
    assert "OMP_NUM_THREADS=1" in warned["quota"]
    assert "watch" in warned, "the tests switch the watch off"


def test_counters_that_cannot_be_read_are_said_so(doctor):
    found = doctor(Conditions())
    assert found["load"].status == "warning"
    assert "not readable" in found["load"].found


def shown(found, capsys):
    print_session(summarise(found))
    return capsys.readouterr().out


def test_a_session_shows_its_fingerprint_and_how_calm_it_was(capsys):
    def change(one):
        busy = one.prompt == "p1"
        return one.model_copy(update={"conditions": Conditions(others_cpus=1.8 if busy else 0.0)})

    kept = Environment(
        instruction_sets=("avx512f",), quota_cpus=1.5, governor="powersave", suite_commit="c" * 40, suite_dirty=True,
        thread_variables={"OMP_NUM_THREADS": "2"}, load_average=0.5, affinity=(0, 3),
    )  # fmt: skip
    found = result({"d": 2.0}, change=change)
    session = found.session.model_copy(
        update={"environment": kept, "stopped_by": "budget", "precision": 0.02, "budget_s": 90.0}
    )
    text = shown(found.model_copy(update={"session": session}), capsys)
    for part in (
        "cpu-2core",
        "avx512f",
        "1.5 processors",
        "powersave",
        "OMP_NUM_THREADS=2",
        "commit cccccccccccc with changes that are not committed",
        "of 16 prompt turns 16 were watched, 0 decoded again; 4 stayed disturbed, 0 slowed down",
        "4 × e.g. other processes kept 1.8 of 2 processors busy",
        "the budget was spent",
        "±2.0% asked",
        "in the widest interval",
    ):
        assert part in text, part


def test_a_board_warns_of_a_session_that_was_not_watched():
    found = result({"d": 2.0})
    assert build_boards([found])[0].newest.warnings == (), "its version kept nothing of this"
    session = found.session.model_copy(update={"environment": Environment(), "warnings": ("one",)})
    board = build_boards([found.model_copy(update={"session": session})])[0]
    assert board.newest.warnings == ("one", UNWATCHED)


def test_an_old_session_says_what_it_does_not_know(capsys):
    text = shown(result({"d": 2.0}), capsys)
    assert "not kept by the version that measured it" in text
    assert "the machine was not watched" in text
    assert "at the end of its repeats" in text
