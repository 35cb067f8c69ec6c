"""Result bundles: JSON files that carry a session's results between stores.

A bundle is self-sufficient (it holds the baseline's trials too) and lies where its content says:
`<target>/<machine class>/<date>-<hash>.json`. So contributions never touch the same file, and one that was
changed after it was published shows. Versions 1 and 2 held one draft each and lay in a folder of its name; they
stay where they are.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftrank.errors import InvalidInputError, Problem
from draftrank.measure.records import Session, SessionResult
from draftrank.store.bundle_checks import is_identifier, session_date
from draftrank.store.bundle_format import bundle_data, content_hash, render
from draftrank.store.bundle_reading import bundle_result, parse_json, read_bytes, read_each, require_place
from draftrank.store.merging import in_order, merge

if TYPE_CHECKING:  # a command that reads bundles alone does not wait for SQLAlchemy
    from draftrank.store.store import Store


def publish(result: SessionResult, folder: Path, drafts: Collection[str] = ()) -> list[Path]:
    """Writes the drafts of a session (of these ids; none named: all) that are not published yet, with the baseline, as
    one bundle below the folder of all bundles; returns those that hold the drafts, sorted. Equal content gives equal
    paths and bytes. A bundle that says the same in the form of an older version stays as it is.

    Raises:
        InvalidInputError: the parts of the result do not fit together, a name cannot be a folder, or the
            bundle is too large; nothing has been written.
    """
    wanted = {
        arm.id for arm in result.session.arms if arm.kind == "draft" and (not drafts or arm.id in drafts)
    }
    paths = []
    for path, held in _published_before(result, folder):
        if wanted & held:
            paths.append(path)
            wanted -= held
    if wanted:
        content = render(bundle_data(part_of(result, wanted))).encode("ascii")
        # Published is only what can be read again, by the same checks.
        data = parse_json(content, name := f"session {result.session.id}")
        path = folder / bundle_path(bundle_result(data, name).session, data)
        write_bundle(path, content)
        paths.append(path)
    return sorted(paths)


def read_bundle(path: Path) -> SessionResult:
    """Reads and checks one bundle, wherever it lies.

    Raises:
        InvalidInputError: it cannot be read, is too large, is not a bundle of a known version, was
            changed, or does not add up; names file and field.
    """
    return bundle_result(parse_json(read_bytes(path), str(path)), str(path))


def bundle_files(paths: Iterable[Path]) -> list[Path]:
    """The bundles that are named, and those below the folders that are, sorted.

    Raises:
        InvalidInputError: some folders hold none; all are named.
    """
    found = {path: sorted(path.rglob("*.json")) if path.is_dir() else [path] for path in paths}
    empty = [path for path, files in found.items() if not files]
    if empty:
        fix = "name a folder of bundles"
        raise InvalidInputError(Problem("holds no .json file", str(path), fix=fix) for path in empty)
    return [file for files in found.values() for file in files]


def load_results(store: Store | None, bundle_folder: Path | None) -> tuple[SessionResult, ...]:
    """Everything there is, oldest session first: the store's results and the published ones, merged.

    Raises:
        InvalidInputError: some bundles are wrong or lie where they do not belong; all are named.
        StoreError: two parts of a session contradict each other.
    """
    results = list(store.results()) if store else []
    if bundle_folder is not None:
        paths = sorted(bundle_folder.rglob("*.json"))
        results += read_each(paths, lambda path: read_in_place(path, bundle_folder))
    return tuple(merge(results))


def bundle_path(session: Session, data: dict[str, Any]) -> Path:
    """Where a bundle with this header and JSON object belongs, relative to the folder of all bundles.

    Raises:
        InvalidInputError: the machine class gives no folder name.
    """
    of_draft = [arm.id for arm in session.arms if arm.kind == "draft"] if data["schema_version"] < 3 else []
    machine_class = folder_name(session.machine.machine_class)
    return Path(
        session.target, *of_draft, machine_class, f"{session_date(session)}-{content_hash(data)}.json"
    )


def folder_name(machine_class: str) -> str:
    """A machine class as a folder: lower-case letters, digits, dots and dashes.

    Raises:
        InvalidInputError: nothing is left of it, or it tries to climb out of its folder.
    """
    name = re.sub(r"[^a-z0-9.]+", "-", machine_class.lower()).strip("-.")[:80].strip("-.")
    if not name or ".." in re.split(r"[/\\]", machine_class):
        raise InvalidInputError.single(
            f"{machine_class!r} cannot name a folder",
            field="session.machine.machine_class",
            fix="use letters and digits",
        )
    return name


def part_of(result: SessionResult, drafts: Collection[str]) -> SessionResult:
    """The session as if these drafts alone had been measured beside the baseline."""
    arms = tuple(
        arm
        for arm in result.session.arms
        if (arm.kind != "draft" or arm.id in drafts)
        and (arm.reference is None or arm.reference.draft is None or arm.reference.draft in drafts)
    )
    names = {arm.id for arm in arms}
    return SessionResult(
        session=result.session.model_copy(update={"arms": arms}),
        trials=tuple(trial for trial in result.trials if trial.arm in names),
    )


def _published_before(result: SessionResult, folder: Path) -> Iterator[tuple[Path, set[str]]]:
    """Bundles that say of some drafts exactly what the session says, with the ids of those drafts."""
    target, begun = result.session.target, f"{session_date(result.session)}-*.json"
    for path in sorted((folder / target).rglob(begun)) if is_identifier(target) else ():
        try:
            if json.dumps(result.session.id).encode() not in path.read_bytes():
                continue
            known = read_bundle(path)
        except (InvalidInputError, OSError):
            continue
        held = {arm.id for arm in known.session.arms if arm.kind == "draft"}
        if in_order(part_of(result, held)) == in_order(known):
            yield path, held


def read_in_place(path: Path, folder: Path, content: bytes | None = None) -> SessionResult:
    """Reads and checks a bundle that must lie where its content says; `content` is the file's where it is at hand.

    Raises:
        InvalidInputError: as `read_bundle`, or it belongs elsewhere below `folder`.
    """
    data = parse_json(read_bytes(path) if content is None else content, str(path))
    result = bundle_result(data, str(path))
    require_place(path, folder, bundle_path(result.session, data))
    return result


def write_bundle(path: Path, content: bytes) -> None:
    """Writes a file as a whole or not at all; an equal one is left alone."""
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)
