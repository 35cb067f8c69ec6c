"""Published files in a folder that lies elsewhere: written there, brought here to be read, and imported."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from draftrank.catalog.remote_folder import RemoteFolder
from draftrank.errors import InvalidInputError
from draftrank.store.bundle_checks import require_times
from draftrank.store.bundle_reading import bundle_result, parse_json, read_bytes
from draftrank.store.parity_bundle import PARITY_FILES
from draftrank.store.serving_bundle import SERVING_FILES

if TYPE_CHECKING:
    from draftrank.store.store import Store


def put_bundles(write: Callable[[Path], Iterable[Path]], address: str) -> list[str]:
    """Writes published files below an address; returns their names there.

    Args:
        write: writes them below a folder and returns them.

    Raises:
        InvalidInputError: as `write`, or nothing installed reaches the address.
        MissingDataError: it cannot be written.
    """
    folder = RemoteFolder(address)
    with tempfile.TemporaryDirectory(prefix="draftrank-bundles-") as scratch:
        names = []
        for path in write(Path(scratch)):
            name = path.relative_to(scratch).as_posix()
            folder.put(path, name)
            names.append(f"{address.rstrip('/')}/{name}")
    return names


@contextmanager
def bundles_here(places: list[str]) -> Iterator[list[Path]]:
    """The same places as folders and files of this machine; what lies elsewhere is copied for as long.

    Raises:
        InvalidInputError: nothing installed reaches an address, or no bundle lies there.
        MissingDataError: it cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="draftrank-bundles-") as scratch:
        yield [
            _copy(place, Path(scratch) / str(number)) if "://" in place else Path(place)
            for number, place in enumerate(places)
        ]


def _copy(address: str, to: Path) -> Path:
    folder = RemoteFolder(address)
    names = [
        name for name in folder.files() if name.endswith(".json") and ".." not in PurePosixPath(name).parts
    ]
    if not names:
        raise InvalidInputError.single("holds no .json file", file=address, fix="name a folder of bundles")
    for name in names:
        path = to / name
        path.parent.mkdir(parents=True, exist_ok=True)
        folder.get(name, path)
    return to


def import_file(path: Path, store: Store) -> None:
    """Adds a result bundle, a parity record or a serving session to a store; bundles of one session become that one session
    again, and of a serving session the later state stays.

    Raises:
        InvalidInputError: it is none of them, does not add up, or its times contradict each other; names file and field.
        StoreError: it contradicts what the store has.
    """
    name = str(path)
    data = parse_json(read_bytes(path), name)
    if PARITY_FILES.key in data:
        store.add_parity(PARITY_FILES.checked(data, name))
    elif SERVING_FILES.key in data:
        store.serving.join_result(SERVING_FILES.checked(data, name))
    else:
        result = bundle_result(data, name)
        require_times(result, name)
        store.join_result(result)
