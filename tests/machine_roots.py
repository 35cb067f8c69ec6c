"""Folders that look like another machine's `/proc` and `/sys`."""

from __future__ import annotations

from pathlib import Path

MOUNTS = {
    "v2": "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n",
    "v1": (
        "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
        "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    ),
    # Docker on version 1: the process sees the host's path, but only its own part is mounted.
    "v1-docker": (
        "32 31 0:29 /docker/abc /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n"
        "35 31 0:32 /docker/other /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    ),
}
GROUPS = {
    "v2": "0::/user.slice/job.scope\n",
    "v1": "4:memory:/jobs/one\n2:cpu,cpuacct:/jobs/one\n1:name=systemd:/\n0::/\n",
    "v1-docker": "4:memory:/docker/abc\n2:cpu:/docker/abc\n",
}


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def container(root: Path, kind: str, files: dict[str, str]) -> Path:
    """A machine with these control groups; `files` are relative to `/sys/fs/cgroup`."""
    proc = {
        "proc/self/cgroup": GROUPS[kind],
        "proc/self/mountinfo": "22 1 8:1 / / rw - ext4 x rw\n" + MOUNTS[kind],
    }
    return write(root, proc | {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
