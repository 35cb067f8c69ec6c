"""Result bundles: JSON files that carry one draft's results of one session between stores.

A bundle is self-sufficient (it holds the baseline's trials too) and lies where its content says:
`<target>/<draft>/<machine class>/<date>-<hash>.json`. So contributions never touch the same file, and
one that was changed after it was published shows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from draftrank.errors import InvalidInputError, Problem
from draftrank.measure.records import Arm, Session, SessionResult
from draftrank.store.bundle_checks import require_times, session_date
from draftrank.store.bundle_format import bundle_data, content_hash, render
from draftrank.store.bundle_reading import bundle_result, parse_json, read_json
from draftrank.store.merging import merge
from draftrank.store.store import Store


def publish(result: SessionResult, folder: Path, drafts: Collection[str] = ()) -> list[Path]:
    """Writes one bundle per draft of the session; equal content gives equal paths and bytes. A bundle that
    says the same in the form of an older version stays as it is.

    Args:
        result: a session with its trials.
        folder: where all bundles lie.
        drafts: ids of those to publish; empty: all.

    Returns:
        The paths of the bundles below `folder`, in the order of the session's arms.

    Raises:
        InvalidInputError: the parts of the result do not fit together, a name cannot be a folder, or a
            bundle is too large; nothing has been written.
    """
    contents: dict[Path, bytes] = {}
    paths: list[Path] = []
    for arm in result.session.arms:
        if arm.kind == "draft" and (not drafts or arm.id in drafts):
            content = render(bundle_data(_part_of(result, arm))).encode("ascii")
            # Published is only what can be read again, by the same checks.
            data = parse_json(content, name := f"session {result.session.id}, draft {arm.id}")
            part = bundle_result(data, name)
            path = folder / bundle_path(part.session, arm.id, content_hash(data))
            before = _published_before(part, path)
            paths.append(before or path)
            if before is None:
                contents[path] = content
    for path, content in contents.items():
        _write(path, content)
    return paths


def read_bundle(path: Path) -> SessionResult:
    """Reads and checks one bundle, wherever it lies.

    Raises:
        InvalidInputError: it cannot be read, is too large, is not a bundle of a known version, was
            changed, or does not add up; names file and field.
    """
    return bundle_result(read_json(path), str(path))


def bundle_files(paths: Iterable[Path]) -> list[Path]:
    """The bundles that are named, and those below the folders that are, sorted.

    Raises:
        InvalidInputError: some folders hold none; all are named.
    """
    files: list[Path] = []
    problems: list[Problem] = []
    for path in paths:
        found = sorted(path.rglob("*.json")) if path.is_dir() else [path]
        files += found
        if not found:
            problems.append(Problem("holds no .json file", str(path), fix="name a folder of bundles"))
    if problems:
        raise InvalidInputError(problems)
    return files


def import_bundle(path: Path, store: Store) -> SessionResult:
    """Adds a bundle to a store; bundles of one session become that one session again.

    Returns:
        What the bundle holds.

    Raises:
        InvalidInputError: as `read_bundle`, or its times contradict each other.
        StoreError: it contradicts what the store has of the session.
    """
    result = read_bundle(path)
    require_times(result, str(path))
    store.join_result(result)
    return result


def load_results(store: Store | None, bundle_folder: Path | None) -> tuple[SessionResult, ...]:
    """Everything there is, oldest session first: the store's results and the published ones, merged.

    Raises:
        InvalidInputError: some bundles are wrong or lie where they do not belong; all are named.
        StoreError: two parts of a session contradict each other.
    """
    results = list(store.results()) if store else []
    problems: list[Problem] = []
    for path in sorted(bundle_folder.rglob("*.json")) if bundle_folder else ():
        assert bundle_folder is not None
        try:
            results.append(_read_in_place(path, bundle_folder))
        except InvalidInputError as error:
            problems.extend(error.problems)
    if problems:
        raise InvalidInputError(problems)
    return tuple(merge(results))


def bundle_path(session: Session, draft: str, digest: str) -> Path:
    """Where a bundle belongs, relative to the folder of all bundles.

    Raises:
        InvalidInputError: the machine class gives no folder name.
    """
    machine_class = folder_name(session.machine.machine_class)
    return Path(session.target, draft, machine_class, f"{session_date(session)}-{digest}.json")


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


def _published_before(part: SessionResult, path: Path) -> Path | None:
    """The bundle beside `path` that holds the same records, but was written before they had some field."""
    for other in sorted(path.parent.glob(f"{session_date(part.session)}-*.json")):
        try:
            if other != path and read_bundle(other) == part:
                return other
        except InvalidInputError:
            continue
    return None


def _part_of(result: SessionResult, draft: Arm) -> SessionResult:
    """The session as if this draft alone had been measured beside the baseline."""
    arms = tuple(
        arm
        for arm in result.session.arms
        if (arm.kind != "draft" or arm is draft)
        and (arm.reference is None or arm.reference.draft in (None, draft.id))
    )
    names = {arm.id for arm in arms}
    return SessionResult(
        session=result.session.model_copy(update={"arms": arms}),
        trials=tuple(trial for trial in result.trials if trial.arm in names),
    )


def _read_in_place(path: Path, folder: Path) -> SessionResult:
    data = read_json(path)
    result = bundle_result(data, str(path))
    (draft,) = (arm.id for arm in result.session.arms if arm.kind == "draft")
    belongs = bundle_path(result.session, draft, content_hash(data))
    if path.relative_to(folder) != belongs:
        raise InvalidInputError.single(
            "was changed after it was published, or does not lie where its content says",
            file=str(path),
            fix=f"restore it, or publish it again: it would be {belongs}",
        )
    return result


def _write(path: Path, content: bytes) -> None:
    """Writes a file as a whole or not at all; an equal one is left alone."""
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)
