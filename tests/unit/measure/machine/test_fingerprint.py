"""The fingerprint: what is read from another machine's files, and from this one."""

from __future__ import annotations

import subprocess

import pytest

from draftrank.measure.machine.cgroup import ControlGroups
from draftrank.measure.machine.environment import git_state, job_url, read_environment
from draftrank.measure.machine.fingerprint import cores_in_use, is_this_machine, read_machine
from draftrank.measure.machine.processor import (
    cpu_info,
    frequency_hz,
    frequency_max_hz,
    governor,
    instruction_sets,
    processors_of_this_process,
)
from machine_roots import container, write

HUGE = "9223372036854771712\n"


@pytest.mark.parametrize(
    ("kind", "files", "quota", "memory", "throttled"),
    [
        pytest.param(
            "v2",
            {
                "user.slice/job.scope/cpu.max": "150000 100000\n",
                "user.slice/job.scope/memory.max": "max\n",
                "user.slice/job.scope/cpu.stat": "usage_usec 9\nnr_throttled 3\nthrottled_usec 2500000\n",
                "user.slice/cpu.max": "max 100000\n",
                "user.slice/memory.max": "2147483648\n",
            },
            1.5,
            2 << 30,
            2.5,
            id="v2: the group's own quota, the memory limit of the one above",
        ),
        pytest.param(
            "v2",
            {"user.slice/cpu.max": "400000 100000\n", "user.slice/job.scope/cpu.max": "max 100000\n"},
            4.0,
            None,
            None,
            id="v2: a group above limits it",
        ),
        pytest.param(
            "v1",
            {
                "cpu,cpuacct/jobs/one/cpu.cfs_quota_us": "-1\n",
                "cpu,cpuacct/jobs/one/cpu.cfs_period_us": "100000\n",
                "cpu,cpuacct/jobs/cpu.cfs_quota_us": "50000\n",
                "cpu,cpuacct/jobs/cpu.cfs_period_us": "100000\n",
                "cpu,cpuacct/jobs/cpu.stat": "nr_periods 5\nnr_throttled 2\nthrottled_time 1500000000\n",
                "memory/jobs/one/memory.limit_in_bytes": "1073741824\n",
                "memory/memory.limit_in_bytes": HUGE,
            },
            0.5,
            1 << 30,
            1.5,
            id="v1: the tightest of the chain",
        ),
        pytest.param(
            "v1-docker",
            {
                "cpu/cpu.cfs_quota_us": "200000\n",
                "cpu/cpu.cfs_period_us": "100000\n",
                "memory/memory.limit_in_bytes": HUGE,
            },
            2.0,
            None,
            None,
            id="v1 in a container: only its own part is mounted",
        ),
        pytest.param("v2", {}, None, None, None, id="no limits"),
        pytest.param(
            "v2",
            {"user.slice/job.scope/cpu.max": "garbage\n", "user.slice/job.scope/cpu.stat": "one two three\n"},
            None,
            None,
            None,
            id="files that make no sense",
        ),
    ],
)
def test_a_containers_limits(tmp_path, kind, files, quota, memory, throttled):
    groups = ControlGroups.of_this_process(container(tmp_path, kind, files))
    assert groups.quota_cpus() == quota
    assert groups.memory_limit_bytes() == memory
    assert groups.throttled_s() == throttled


def test_no_control_groups(tmp_path):
    groups = ControlGroups.of_this_process(tmp_path)
    assert groups == ControlGroups(())
    assert (groups.quota_cpus(), groups.memory_limit_bytes(), groups.throttled_s()) == (None, None, None)


CPUINFO = """\
processor\t: 0
model name\t: Example(R) CPU @ 2.00GHz
cpu MHz\t\t: 1800.000
flags\t\t: fpu sse2 avx2 fma avx512f amx_tile amx_bf16 {more}

processor\t: 1
model name\t: Example(R) CPU @ 2.00GHz
cpu MHz\t\t: 2600.000
flags\t\t: fpu sse2 avx2 fma avx512f amx_tile amx_bf16 {more}
"""
CPUFREQ = "sys/devices/system/cpu/cpu{}/cpufreq/"


def test_instruction_sets_that_matter(tmp_path):
    root = write(tmp_path, {"proc/cpuinfo": CPUINFO.format(more="")})
    assert instruction_sets(cpu_info(root)) == ("amx_tile", "amx_bf16", "avx512f", "avx2", "fma")
    assert instruction_sets({"Features": "fp asimd asimddp bf16 sve"}) == ("sve", "bf16", "asimddp", "asimd")
    assert instruction_sets({}) == ()
    assert cpu_info(tmp_path / "nowhere") == {}


def test_clocks_and_governor(tmp_path):
    files = {
        CPUFREQ.format(0) + "scaling_governor": "powersave\n",
        CPUFREQ.format(0) + "cpuinfo_max_freq": "3500000\n",
        CPUFREQ.format(0) + "scaling_cur_freq": "800000\n",
        CPUFREQ.format(1) + "cpuinfo_max_freq": "3800000\n",
        CPUFREQ.format(1) + "scaling_cur_freq": "3400000\n",
    }
    root = write(tmp_path, files)
    assert governor(0, root) == "powersave"
    assert governor(1, root) is None
    assert frequency_max_hz((0, 1), root) == 3.8e9
    # One thread computes: the other processor idles at a low clock that says nothing.
    assert frequency_hz((0, 1), 1, root) == 3.4e9
    assert frequency_hz((0, 1), 2, root) == 2.1e9
    assert frequency_hz((7,), 1, root) is None


def test_a_clock_without_a_driver_is_read_from_cpuinfo_but_not_in_a_guest(tmp_path):
    bare = write(tmp_path / "bare", {"proc/cpuinfo": CPUINFO.format(more="")})
    guest = write(tmp_path / "guest", {"proc/cpuinfo": CPUINFO.format(more="hypervisor")})
    assert frequency_hz((0, 1), 2, bare) == 2.2e9
    assert frequency_hz((0, 1), 2, guest) is None
    assert frequency_max_hz((0, 1), bare) is None


@pytest.mark.parametrize(
    ("affinity", "quota", "cores"),
    [(8, None, 8), (8, 8.0, 8), (8, 100.0, 8), (64, 1.5, 2), (4, 0.3, 1), (2, 2.0, 2)],
)
def test_a_quota_limits_the_cores_of_the_class(affinity, quota, cores):
    assert cores_in_use(affinity, quota) == cores


def test_the_class_of_a_machine_follows_its_quota(tmp_path):
    files = {"user.slice/cpu.max": "10000 100000\n"}
    limited = container(write(tmp_path, {"proc/cpuinfo": CPUINFO.format(more="")}), "v2", files)
    machine = read_machine("cpu", root=limited)
    assert machine.cores == 1
    threads = "" if machine.threads == 1 else f"-{machine.threads}t"
    assert machine.machine_class == "example-amx-bf16-1c" + threads


def test_a_class_is_this_machines_whatever_the_number_of_threads(tmp_path):
    files = {"user.slice/cpu.max": "10000 100000\n"}
    gpu = "Model: \t\t NVIDIA H200\nIRQ:   \t\t 11\n"
    root = container(write(tmp_path, {"proc/cpuinfo": CPUINFO.format(more="")}), "v2", files)
    write(root, {"proc/driver/nvidia/gpus/0000:01:00.0/information": gpu})
    own = ["example-amx-bf16-1c", "example-amx-bf16-1c-4t", "nvidia-h200"]
    others = ["example-amx-bf16-1c-x", "example-amx-bf16-11c", "example-avx2-1c", "nvidia-h2000", "", "1c"]
    assert [name for name in (*own, *others) if is_this_machine(name, root=root)] == own


def test_this_machine_is_known_without_asking_torch():
    assert is_this_machine(read_machine("cpu").machine_class)


def test_another_machines_environment(tmp_path):
    root = container(tmp_path, "v2", {"user.slice/job.scope/cpu.max": "150000 100000\n"})
    write(root, {"proc/cpuinfo": CPUINFO.format(more="")})
    first = processors_of_this_process()[0]
    write(root, {CPUFREQ.format(first) + "scaling_governor": "performance\n"})
    environment = read_environment("cpu", root=root)
    assert environment.quota_cpus == 1.5
    assert environment.governor == "performance"
    assert environment.instruction_sets[0] == "amx_tile"


def test_this_machines_environment(monkeypatch):
    monkeypatch.setenv("OMP_PROC_BIND", "close")
    monkeypatch.setenv("UNRELATED", "1")
    environment = read_environment("cpu")
    assert set(environment.affinity) == set(processors_of_this_process())
    assert environment.memory_available_bytes > 0
    assert environment.thread_variables["OMP_PROC_BIND"] == "close"
    assert "UNRELATED" not in environment.thread_variables
    assert environment.interop_threads >= 1
    assert environment.torch_build.startswith("2.")
    assert len(environment.torch_build.split(" ", 1)) == 2
    assert (environment.gpu_driver, environment.suite_commit) == (None, None)


def git(folder, *arguments):
    identity = ["-c", "user.name=T", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, "-C", str(folder), *arguments], check=True, capture_output=True)


def test_the_workspaces_git_state(tmp_path):
    assert git_state(tmp_path / "nowhere") == (None, None)
    (tmp_path / "drafts").mkdir()
    (tmp_path / "drafts" / "one.yaml").write_text("id: one\n")
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) == (None, None), "no commit yet"
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "one")
    commit, dirty = git_state(tmp_path)
    assert len(commit) == 40
    assert dirty is False
    (tmp_path / ".draftrank").mkdir()
    (tmp_path / ".draftrank" / "results.sqlite").write_text("")
    assert git_state(tmp_path) == (commit, False), "a run's own state is no change"
    (tmp_path / "drafts" / "two.yaml").write_text("id: two\n")
    assert git_state(tmp_path) == (commit, True)
    environment = read_environment("cpu", tmp_path)
    assert (environment.suite_commit, environment.suite_dirty) == (commit, True)


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({}, None),
        (
            {
                "GITHUB_ACTIONS": "true",
                "GITHUB_SERVER_URL": "https://github.com",
                "GITHUB_REPOSITORY": "ada/drafts",
                "GITHUB_RUN_ID": "12",
            },
            "https://github.com/ada/drafts/actions/runs/12",
        ),
        ({"GITHUB_ACTIONS": "true", "GITHUB_SERVER_URL": "https://github.com"}, None),
        (
            {"CI_JOB_URL": "https://gitlab.example.org:8443/ada/drafts/-/jobs/7"},
            "https://gitlab.example.org:8443/ada/drafts/-/jobs/7",
        ),
        ({"CI_JOB_URL": "javascript:alert(1)"}, None),
        ({"CI_JOB_URL": 'https://a.org/"onmouseover="alert(1)'}, None),
        ({"CI_JOB_URL": "http://a.org/plain"}, None),
    ],
)
def test_the_page_of_the_job_that_measures(variables, url):
    assert job_url(variables) == url


def test_a_machine_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) == (None, None)
