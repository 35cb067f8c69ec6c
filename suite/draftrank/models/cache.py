"""Built things on disk: found by what they are made from, whole or not there at all.

Everything is made in a staging folder beside its place and published by one rename, by one process
at a time. What a long build wants to find again after an interruption lies in its scratch folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from draftrank.catalog.base import sha256_of_json
from draftrank.catalog.draft import DraftBase
from draftrank.catalog.self_generated import CALIBRATION
from draftrank.catalog.sources.base import file_sha256
from draftrank.errors import MissingDataError
from draftrank.models.gguf_format import GGUF_FILE
from draftrank.progress import Progress

FACTS = "draftrank.json"
"""The file in a folder of ours that says how it was made and is to be loaded."""
CODE_VERSIONS = "code_versions"
"""Its entry with the versions of the steps' code by kind; where it is missing, all are 1."""
PIPELINE_VERSION = 1
"""Raised when equal steps come to give another draft for reasons outside of them."""


def draft_key(
    draft: DraftBase,
    target_weights_sha256: str,
    steps: int | None = None,
    code_versions: Mapping[str, int] | None = None,
) -> str:
    """Identity of a draft's content: sha256 (hex) over the target's weights, the steps as declared, the
    text they are calibrated on and the versions of the code that carries them out.

    Args:
        draft: the declaration.
        target_weights_sha256: identity of the target.
        steps: only the first so many steps; None: all.
        code_versions: versions of the steps' code by kind, 1 where it is not named; None: today's.
    """
    content: dict[str, Any] = {
        "pipeline_version": PIPELINE_VERSION,
        "target_weights_sha256": target_weights_sha256,
        "steps": [
            {
                "kind": step.kind,
                "code_version": step.code_version
                if code_versions is None
                else code_versions.get(step.kind, 1),
                "content_sha256": step.content_sha256(),
            }
            for step in draft.build_steps[:steps]
        ],
    }
    if draft.calibration_text != CALIBRATION:
        content["calibration_sha256"] = draft.calibration_text.content_sha256()
    return sha256_of_json(content)


def draft_folder(cache: Path, key: str) -> Path:
    """Where the draft of this key lies once it is built."""
    return cache / "drafts" / key


def scratch_folder(cache: Path, name: str) -> Path:
    """A folder for resumable work; it survives interruptions. Made if absent."""
    folder = cache / "scratch" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def only_process(final: Path, progress: Progress, what: str) -> Iterator[None]:
    """Holds the lock of `final` within this machine; says so when it has to wait for another process."""
    final.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(final.parent / f".{final.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.message(f"waiting for another process that is making {what}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def publish_folder(final: Path, fill: Callable[[Path], None]) -> None:
    """Fills a staging folder and renames it to `final`; to be called under `only_process`.

    After an exception or an interruption `final` is absent; what a killed process left in staging is
    removed by the next one.
    """
    staging = final.parent / f".staging-{final.name}"
    remove_folder(staging)
    staging.mkdir(parents=True)
    try:
        fill(staging)
        os.replace(staging, final)
    finally:
        remove_folder(staging)


def publish_file(final: Path, write: Callable[[Path], None]) -> None:
    """As `publish_folder` for one file, replacing an older one."""
    final.parent.mkdir(parents=True, exist_ok=True)
    staging = final.parent / f".staging-{os.getpid()}-{final.name}"
    try:
        write(staging)
        os.replace(staging, final)
    finally:
        staging.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Removes a folder and all it holds, if it is there."""
    if folder.exists():
        shutil.rmtree(folder)


def weight_files(folder: Path) -> list[Path]:
    """The folder's safetensors files, sorted by name; of a draft that is a GGUF file, that one.

    Raises:
        MissingDataError: there are none.
    """
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob(GGUF_FILE))
    if not files:
        raise MissingDataError(
            f"{folder} holds no *.safetensors file: convert its weights (`model.save_pretrained(folder)`); "
            "other formats are not read"
        )
    return files


def weights_sha256(files: Sequence[Path]) -> str:
    """Identity of weights: sha256 (hex) over the sorted pairs of file name and file sha256."""
    return sha256_of_json(sorted([path.name, file_sha256(path)] for path in files))
