"""Results as one SQLite file, for those who would rather query than read JSON."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from draftrank.catalog.base import sha256_of_json
from draftrank.measure.records import SessionResult
from draftrank.store.archive import Archive
from draftrank.store.merging import in_order, session_order
from draftrank.store.schema import create_from_tables
from draftrank.store.store import Store


def archived_database(archive: Archive) -> bytes:
    """As `database_of` all sessions of an archive; made anew only when one of them has changed."""
    source = sha256_of_json([known.source for known in archive.sessions])
    kept = archive.derived.find("database", "results", source)
    if kept is not None:
        return zlib.decompress(kept)
    content = database_of(map(archive.result, archive.sessions))
    archive.derived.keep("database", {"results": (source, zlib.compress(content, 1))})
    return content


def database_of(results: Iterable[SessionResult]) -> bytes:
    """A store that holds these results and nothing else; equal results give equal bytes.

    Raises:
        StoreError: two of them are of the same session and differ.
    """
    with tempfile.TemporaryDirectory(prefix="draftrank-snapshot-") as folder:
        path = Path(folder) / "results.sqlite"
        create_from_tables(path)
        with Store.open(path) as store:
            for result in sorted(results, key=session_order):
                store.add_result(in_order(result))
        return path.read_bytes()
