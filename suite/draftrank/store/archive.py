"""Every session of the local store and the published bundles, read only as far as it is asked for.

A bundle is parsed and checked once: what it holds is kept in `Derived` under the hash of its bytes. A file is taken
as unchanged while its size, its times and its inode are the same; otherwise its bytes are hashed, and parsed when the
hash is new. So a changed, removed or added bundle is noticed by the next command.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, TypeVar

from draftrank.errors import InvalidInputError, Problem, StoreError
from draftrank.measure.parity import Parity
from draftrank.measure.records import Session, SessionResult
from draftrank.measure.serving_records import ServingResult
from draftrank.store.bundle import read_in_place
from draftrank.store.bundle_format import bundle_data, expanded, render
from draftrank.store.bundle_reading import read_bytes
from draftrank.store.derived import Derived
from draftrank.store.merging import in_order, merge
from draftrank.store.parity_bundle import PARITY_FILES
from draftrank.store.schema import BUSY_S, ensure_schema
from draftrank.store.serving_bundle import SERVING_FILES

if TYPE_CHECKING:
    from draftrank.store.store import Store

Reader = Callable[[], SessionResult]
T = TypeVar("T")
SETTLED_NS = 2 * 10**9
"""A file that was written within this time may be written again within the same tick of its clock."""
SERVING_TABLES = ("serving_sessions", "serving_arms", "serving_rounds")
MAX_FRESH = 256
"""Bundles that are held in memory after they were parsed, until their sessions are put together."""


@dataclass(frozen=True, slots=True)
class Known:
    """A session without its trials, or what one bundle or the store has of it."""

    id: str
    created_at: str
    """UTC time, ISO 8601."""
    target: str
    suite: str
    arms: frozenset[str]
    """Ids of its arms, those without trials too."""
    source: str
    """Hash of the content."""

    @classmethod
    def of(cls, session: Session, source: str) -> Known:
        """What has this header."""
        arms = frozenset(arm.id for arm in session.arms)
        return cls(session.id, session.created_at, session.target, session.suite, arms, source)

    @classmethod
    def from_json(cls, text: bytes) -> Known | None:
        """What was written by `to_json`; None for any other text."""
        try:
            fields = json.loads(text)
            return cls(**{**fields, "arms": frozenset(fields["arms"])})
        except (ValueError, KeyError, TypeError):
            return None

    def to_json(self) -> bytes:
        """Its fields as JSON."""
        return json.dumps({**asdict(self), "arms": sorted(self.arms)}).encode()


class Archive:
    """All sessions there are."""

    def __init__(
        self,
        store: Store | Path | None,
        folder: Path | None,
        derived: Derived,
        parity_folder: Path | None = None,
        serving_folder: Path | None = None,
    ) -> None:
        """Looks at the store, or the file of one, and at the folders of all bundles, parity records and serving
        sessions; None: there are none. Reads what is not known yet.

        Raises:
            InvalidInputError: some bundles are wrong or lie where they do not belong; all are named.
            StoreError: the store cannot be read.
        """
        self.derived = derived
        self._readers: dict[str, list[Reader]] = defaultdict(list)
        parts: dict[str, list[Known]] = defaultdict(list)
        for part, reader in (*_stored(store), *_published(folder, derived)):
            parts[part.id].append(part)
            self._readers[part.id].append(reader)
        joined = map(_joined, parts.values())
        self.sessions = tuple(sorted(joined, key=lambda one: (one.created_at, one.id)))
        """What is known of each session, oldest first."""
        self._store, self._parities, self._serving = store, parity_folder, serving_folder

    @property
    def parities(self) -> tuple[Parity, ...]:
        """Every draft's parity with other engines, oldest first; read anew at each look.

        Raises:
            InvalidInputError: some published records are wrong; all are named.
            StoreError: the store cannot be read.
        """
        published = PARITY_FILES.read_all(self._parities) if self._parities else ()
        stored = _of_store(self._store, lambda store: store.parities())
        found = {one.id: one for one in (*stored, *published)}
        return tuple(sorted(found.values(), key=lambda one: (one.created_at, one.id)))

    @property
    def serving(self) -> tuple[ServingResult, ...]:
        """Every finished serving session, oldest first; read anew at each look; raises as `parities`."""
        published = SERVING_FILES.read_all(self._serving) if self._serving else ()
        stored = _of_store(self._store, lambda store: store.serving.results())
        found = {one.session.id: one for one in (*stored, *published) if one.session.finished_at is not None}
        return tuple(sorted(found.values(), key=lambda one: (one.session.created_at, one.session.id)))

    @property
    def serving_sha256(self) -> str | None:
        """Hash of what `serving` is read from, or of the states of its files; None where a database server has it.

        Raises:
            InvalidInputError: a published file cannot be read.
            StoreError: the store cannot be read.
        """
        content = hashlib.sha256()
        for path in sorted(self._serving.rglob("*.json")) if self._serving else ():
            content.update(f"{path} {_state_of(path)} ".encode())
            if not _state_of(path):
                content.update(read_bytes(path))
        if isinstance(self._store, Path):
            with _reading(self._store) as connection:
                for table in SERVING_TABLES:
                    for row in connection.execute(f"SELECT * FROM {table} ORDER BY key"):
                        content.update(repr(tuple(row)).encode())
        elif self._store is not None:
            return None
        return content.hexdigest()

    def result(self, known: Known) -> SessionResult:
        """A session with its trials, in canonical form.

        Raises:
            StoreError: two of its parts contradict each other.
        """
        kept = self.derived.find("session", known.id, known.source)
        try:
            fields = expanded(json.loads(zlib.decompress(kept or b"")), known.id)
            return in_order(SessionResult.model_validate_json(json.dumps(fields)))
        except (ValueError, zlib.error, InvalidInputError):  # it was not kept, or the file is damaged
            pass
        (result,) = merge(read() for read in self._readers[known.id])
        text = zlib.compress(render(bundle_data(result)).encode("ascii"), 1)
        self.derived.keep("session", {known.id: (known.source, text)})
        return result


def _of_store(store: Store | Path | None, read: Callable[[Store], tuple[T, ...]]) -> tuple[T, ...]:
    from draftrank.store.store import Store

    if isinstance(store, Path):
        with Store.open(store) as opened:
            return read(opened)
    return read(store) if store is not None else ()


def _stored(store: Store | Path | None) -> Iterator[tuple[Known, Reader]]:
    if store is None:
        return
    if isinstance(store, Path):
        for part in stored_parts(store):
            yield part, partial(_read_stored, store, part.id)
        return
    for result in store.results():
        sha256 = hashlib.sha256(result.model_dump_json().encode()).hexdigest()
        yield Known.of(result.session, sha256), partial(_itself, result)


def stored_parts(path: Path) -> list[Known]:
    """The sessions of a store's file, by a hash over their rows.

    Raises:
        StoreError: it cannot be read.
    """
    ensure_schema(path)
    parts = []
    with _reading(path) as connection:
        for session in connection.execute("SELECT * FROM sessions").fetchall():
            content = hashlib.sha256(repr(tuple(session)).encode())
            machine = (session["machine_key"],)
            for row in connection.execute("SELECT * FROM machines WHERE key = ?", machine):
                content.update(repr(tuple(row)).encode())
            arms = []
            for table in ("session_tasks", "arms", "trials"):
                rows = connection.execute(
                    f"SELECT * FROM {table} WHERE session_key = ? ORDER BY key", (session["key"],)
                )
                for row in rows:
                    content.update(repr(tuple(row)).encode())
                    arms += [row["id"]] if table == "arms" else []
            header = (session["id"], session["created_at"], session["target"], session["suite"])
            parts.append(Known(*header, frozenset(arms), content.hexdigest()))
    return parts


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A store's file as it was at one moment."""
    try:
        with closing(sqlite3.connect(path, timeout=BUSY_S)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("BEGIN")
            yield connection
    except sqlite3.Error as error:
        raise StoreError(f"{path}: {error} (restore a backup of the file)") from error


def _read_stored(path: Path, session: str) -> SessionResult:
    from draftrank.store.store import Store

    with Store.open(path) as store:
        return store.result(session)


def _published(folder: Path | None, derived: Derived) -> Iterator[tuple[Known, Reader]]:
    """Every bundle of the folder; those that were not known are read."""
    if folder is None:
        return
    before = derived.all_of("bundle")
    now: dict[str, tuple[str, bytes]] = {}
    problems: list[Problem] = []
    parts: dict[str, Known] = {}
    fresh: dict[str, SessionResult] = {}
    for path in sorted(folder.rglob("*.json")):
        name = str(path)
        state = _state_of(path)
        source, value = before.get(name, ("", b""))
        known = Known.from_json(value)
        if known is None or source != state:
            try:
                sha256, result = _look_at(path, folder, known)
            except InvalidInputError as error:
                problems.extend(error.problems)
                continue
            if result is not None:
                known = Known.of(result.session, sha256)
                if len(fresh) < MAX_FRESH:
                    fresh[name] = result
            assert known is not None
            now[name] = state, known.to_json()
        parts[name] = known
    derived.keep("bundle", now)
    derived.drop("bundle", [name for name in before if name not in parts and folder in Path(name).parents])
    if problems:
        raise InvalidInputError(problems)
    for name, part in parts.items():
        found = fresh.get(name)
        yield part, partial(_itself, found) if found else partial(read_in_place, Path(name), folder)


def _look_at(path: Path, folder: Path, known: Known | None) -> tuple[str, SessionResult | None]:
    """The hash of a bundle's bytes, and what it holds unless that is known."""
    content = read_bytes(path)
    sha256 = hashlib.sha256(content).hexdigest()
    if known is not None and known.source == sha256:
        return sha256, None
    return sha256, read_in_place(path, folder, content)


def _state_of(path: Path) -> str:
    """What changes when a file is written, replaced or moved; empty when that may be going on."""
    try:
        found = path.stat()
    except OSError:
        return ""
    if max(found.st_mtime_ns, found.st_ctime_ns) > time_ns() - SETTLED_NS:
        return ""
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino} {found.st_dev}"


def _itself(result: SessionResult) -> SessionResult:
    return result


def _joined(parts: list[Known]) -> Known:
    source = hashlib.sha256(" ".join(sorted({part.source for part in parts})).encode()).hexdigest()
    return replace(parts[0], arms=frozenset().union(*(part.arms for part in parts)), source=source)
