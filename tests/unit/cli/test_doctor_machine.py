"""What `draftrank doctor` and `draftrank show` say of the machine."""

from __future__ import annotations

import json
import re
import tomllib
from typing import get_args

import pytest
import typer

from builders import MACHINE, result
from draftrank.board.ranking import build_boards
from draftrank.catalog.backend import Backend
from draftrank.cli import doctor as doctor_command
from draftrank.cli.doctor_machine import Finding, look_at_machine
from draftrank.cli.session_facts import print_session
from draftrank.engine.backends import choice, registry
from draftrank.measure.evidence import Conditions, Environment
from draftrank.measure.machine import conditions, environment, fingerprint
from draftrank.measure.summaries.summary import UNWATCHED, summarise
from workspaces import REPOSITORY, write_workspace

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS = {
    re.match(r"[\w-]+", requirement)[0]: extra
    for extra, requirements in PROJECT["optional-dependencies"].items()
    for requirement in requirements
}
"""Each optional package and its extra, as the project declares them."""


@pytest.fixture
def doctor(monkeypatch):
    """The findings on a machine of this environment and these conditions, by what was looked at."""

    def look(now=None, **facts):
        monkeypatch.setattr(fingerprint, "read_machine", lambda _: MACHINE)
        monkeypatch.setattr(environment, "read_environment", lambda _: Environment(**facts))
        monkeypatch.setattr(conditions, "LOOK_S", 0.0)
        monkeypatch.setattr(conditions.Watch, "end", lambda _: now or Conditions(others_cpus=0.0))
        return {finding.what: finding for finding in look_at_machine()}

    return look


def test_backends_are_listed_and_the_choice_of_auto_is_explained(doctor, monkeypatch):
    monkeypatch.setattr(choice, "instructions_here", lambda: "avx512_bf16")
    monkeypatch.setattr(choice, "fastest_dtype", lambda *_: "bf16")
    monkeypatch.setattr(
        registry, "why_not_here", lambda backend, _: None if backend in ("cpp", "transformers") else "no"
    )
    found = doctor()
    assert [found[f"backend {name}"].status for name in get_args(Backend)] == ["ok", "ok", "absent", "absent"]
    assert found["auto"].status == "ok"
    assert "backend cpp, bf16" in found["auto"].found
    assert "compiled for avx512_bf16; transformers would give about 1/5 of the tokens" in found["auto"].found
    monkeypatch.setattr(registry, "why_not_here", lambda backend, _: "none" if backend == "cpp" else None)
    monkeypatch.setattr(choice, "FASTEST_FIRST", ("cpp", "transformers"))
    found = doctor()["auto"]
    assert (found.status, found.fix) == ("warning", "none")
    assert "backend transformers, bf16" in found.found


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
    assert found["governor"].found == "performance, up to 3.50 GHz"
    assert found["quota"].found == "the container may use 64 processors"
    assert found["memory limit"].found == "the container may hold 8.0 GiB"
    assert "load average 0.10" in found["load"].found
    assert {finding.status for finding in found.values()} <= {"ok", "absent"}


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


@pytest.fixture
def told(monkeypatch, tmp_path, capsys):
    """What the command prints and exits with, where `installed` says which packages there are."""
    busy = Finding("load", "warning", "others keep 1.99 of 2 processors busy", "stop other work")
    monkeypatch.setattr(doctor_command, "look_at_machine", lambda: [busy])
    monkeypatch.setenv("PATH", "")  # no engine of this machine
    root = write_workspace(tmp_path)

    def tell(installed):
        monkeypatch.setattr(fingerprint, "package_version", lambda name: "1.2.3" if installed(name) else None)
        code = 0
        try:
            doctor_command.doctor(json=True, workspace=root)
        except typer.Exit as stop:
            code = stop.exit_code
        *lines, last = capsys.readouterr().out.splitlines()
        return code, lines, {finding["what"]: finding for finding in json.loads(last)["findings"]}

    return tell


@pytest.mark.parametrize("installed", [True, False])
def test_no_name_runs_into_its_value(told, installed):
    _, lines, findings = told(lambda _: installed)
    assert len(lines) == len(findings)
    for line, (what, finding) in zip(lines, findings.items(), strict=True):
        assert re.match(rf"{finding['status']} +{re.escape(what)}  +{re.escape(finding['found'])}", line), (
            line
        )
    assert (
        len({line.index(finding["found"]) for line, finding in zip(lines, findings.values(), strict=True)})
        == 1
    )


def test_an_absent_optional_package_and_a_busy_machine_are_no_failure(told):
    code, _, findings = told(lambda name: name.replace("_", "-") not in EXTRAS)
    assert code == 0
    assert findings["load"]["status"] == "warning"
    absent = {what: finding["fix"] for what, finding in findings.items() if finding["status"] == "absent"}
    engines = {"engine vllm": "engine-vllm", "engine llama.cpp": "engine-llama-cpp"}
    assert absent.keys() == EXTRAS.keys() | engines.keys() | {"engine sglang"}
    for engine, made_by in engines.items():
        assert f"`make {made_by}`" in absent[engine]
        assert f"{made_by}:" in (REPOSITORY / "Makefile").read_text()
    for package, extra in EXTRAS.items():
        assert absent[package].startswith(f"pip install 'draftrank[{extra}]'"), package
    assert "`make llama-cpp`" in absent["llama-cpp-python"]
    assert "llama-cpp:" in (REPOSITORY / "Makefile").read_text()


def test_a_missing_required_package_is_a_failure_that_says_how_to_mend_it(told):
    code, _, findings = told(lambda name: name != "torch")
    assert code == 1
    assert findings["torch"] == {
        "what": "torch",
        "status": "missing",
        "found": "not installed",
        "fix": "pip install draftrank",
    }
    assert {what for what, finding in findings.items() if finding["status"] == "missing"} == {"torch"}
    assert "load" not in findings, "the look at the machine needs torch"


def test_every_advice_names_an_extra_that_exists():
    places = [
        REPOSITORY / "README.md",
        *(REPOSITORY / "docs").rglob("*.md"),
        *(REPOSITORY / "suite").rglob("*.py"),
    ]
    named = {
        extra for place in places for extra in re.findall(r"draftrank\[([\w-]+)\]", place.read_text("utf-8"))
    }
    assert {"llama-cpp", "ray", "search", "postgresql"} <= named <= PROJECT["optional-dependencies"].keys()


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
        update={"environment": kept, "stopped_by": "budget", "target_ci": 0.02, "budget_s": 90.0}
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
