"""The workflows: sound, pinned, without rights they do not need, and calling scripts that exist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in WORKFLOWS}
LOADED = {name: YAML(typ="safe", pure=True).load(text) for name, text in TEXTS.items()}


def steps(name):
    return [step for job in LOADED[name]["jobs"].values() for step in job.get("steps", ())]


def test_there_is_one_for_each_stage():
    assert set(TEXTS) == {"bench", "check", "comment", "nightly", "publish"}


@pytest.mark.parametrize("name", TEXTS)
def test_actions_are_pinned_by_hash(name):
    used = [step["uses"] for step in steps(name) if "uses" in step]
    assert used
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), action


@pytest.mark.parametrize("name", TEXTS)
def test_every_script_exists_and_can_be_run(name):
    for step in steps(name):
        for script in re.findall(r"\bci/[\w.-]+\.sh\b", step.get("run", "")):
            path = ROOT / script
            assert os.access(path, os.X_OK), script
            assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0


@pytest.mark.parametrize("name", TEXTS)
def test_every_job_ends_some_day(name):
    assert all(job["timeout-minutes"] <= 360 for job in LOADED[name]["jobs"].values())


@pytest.mark.parametrize("name", ["check", "bench"])
def test_what_runs_a_pull_requests_content_may_write_nothing_and_knows_no_secret(name):
    assert LOADED[name]["permissions"] == {"contents": "read"}
    assert all("permissions" not in job for job in LOADED[name]["jobs"].values())
    assert "secrets" not in TEXTS[name]
    assert "pull_request_target" not in TEXTS[name]


def test_what_may_write_runs_the_base_branchs_code():
    (checkout,) = [step for step in steps("comment") if step.get("uses", "").startswith("actions/checkout@")]
    assert checkout["with"]["ref"] == "${{ github.event.repository.default_branch }}"
    assert LOADED["comment"]["permissions"]["contents"] == "read"


@pytest.mark.parametrize("name", TEXTS)
def test_no_text_of_a_stranger_becomes_a_command(name):
    for step in steps(name):
        for body in (step.get("run", ""), step.get("with", {}).get("script", "")):
            assert "${{" not in body, "pass it as a variable of the environment"


@pytest.mark.parametrize("name", TEXTS)
def test_no_checkout_leaves_its_token_behind(name):
    for step in steps(name):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_actionlint_finds_nothing():
    actionlint = shutil.which("actionlint")
    if actionlint is None:
        pytest.skip("needs actionlint on the path")
    done = subprocess.run(
        [actionlint, *map(str, WORKFLOWS)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
