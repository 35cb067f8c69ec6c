"""Built drafts that several machines share: what one has built, the others only copy.

A draft lies below its key with its files as they are and a list of their hashes, which is written last: what
is still being copied, or was broken off, is not seen.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path, PurePosixPath

from draftrank.catalog.remote_folder import RemoteFolder
from draftrank.catalog.sources.base import FetchContext, file_sha256
from draftrank.errors import DraftrankError, MissingDataError
from draftrank.models.cache import publish_folder
from draftrank.progress import Progress

LIST = "files.json"


def take_shared(context: FetchContext, key: str, final: Path, progress: Progress) -> bool:
    """Copies the draft of this key to `final` if it is shared; says why where it is but cannot be had.

    To be called under the lock of `final`.
    """
    if context.shared_drafts is None or context.offline:
        return False
    try:
        folder = RemoteFolder(context.shared_drafts)
        listed = folder.read(f"{key}/{LIST}")
        if listed is None:
            return False
        with progress.stage("copy the shared draft"):
            publish_folder(final, lambda staging: _copy(folder, key, json.loads(listed), staging))
    except (DraftrankError, ValueError, TypeError, AttributeError) as error:
        progress.message(f"the shared draft {key[:16]} is of no use, it is built here: {error}")
        return False
    return True


def give_shared(context: FetchContext, built: Path, progress: Progress) -> None:
    """Copies a built draft to where it is shared, unless it is there; a failure is only told."""
    if context.shared_drafts is None or context.offline:
        return
    try:
        folder = RemoteFolder(context.shared_drafts)
        if folder.read(f"{built.name}/{LIST}") is not None:
            return
        files = sorted(path for path in built.rglob("*") if path.is_file())
        hashes = {path.relative_to(built).as_posix(): file_sha256(path) for path in files}
        with progress.stage("share the draft", len(files)) as stage, tempfile.TemporaryDirectory() as scratch:
            for path in files:
                folder.put(path, f"{built.name}/{path.relative_to(built).as_posix()}")
                stage.advance()
            listed = Path(scratch) / LIST
            listed.write_text(json.dumps(hashes, indent=1), encoding="utf-8")
            folder.put(listed, f"{built.name}/{LIST}")
    except DraftrankError as error:
        progress.message(f"the draft is not shared: {error}")


def _copy(folder: RemoteFolder, key: str, hashes: dict[str, str], staging: Path) -> None:
    for name, sha256 in hashes.items():
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts:
            raise MissingDataError(f"{name!r} leads out of the draft's folder")
        path = staging / parts
        path.parent.mkdir(parents=True, exist_ok=True)
        folder.get(f"{key}/{name}", path)
        if file_sha256(path) != sha256:
            raise MissingDataError(
                f"{name} is not as it was when it was shared (remove {folder.address}/{key})"
            )
