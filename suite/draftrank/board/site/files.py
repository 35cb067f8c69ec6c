"""Where the site's source lies, and writing the site so that no reader sees half."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path, PurePosixPath

from draftrank.errors import InvalidInputError

LISTING = ".draftrank-site"
"""Names the files of the last rendering, so that the next one may remove what is no longer there."""


def site_source() -> Path:
    """Folder with `templates/` and `static/`: in the installed package, else in the repository."""
    package = Path(str(files("draftrank")))
    installed = package / "_site"
    return installed if installed.is_dir() else package.parents[1] / "leaderboard"


def write_site(pages: Mapping[str, bytes], out: Path) -> tuple[Path, ...]:
    """Puts the pages (by relative path) into `out`, each replaced in one go and `index.html` last.

    Everything is written aside first, so a full disk leaves the old site whole. Pages of an earlier
    rendering that are no longer there are removed; other files in `out` are left alone.

    Raises:
        InvalidInputError: `out` is a file, or holds an `index.html` that is not ours.
    """
    if out.exists() and not out.is_dir():
        raise InvalidInputError.single("is not a folder", file=str(out), fix="name a folder for the site")
    if (out / "index.html").exists() and not (out / LISTING).exists():
        raise InvalidInputError.single(
            "holds an index.html that draftrank did not write", file=str(out), fix="name another folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    earlier = _listed(out)
    names = sorted(pages, key=lambda name: (name == "index.html", name))
    aside = Path(tempfile.mkdtemp(prefix=".draftrank-new-", dir=out))
    try:
        for name in names:
            page = aside / name
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_bytes(pages[name])
        listing = aside / LISTING
        listing.write_text("".join(f"{name}\n" for name in sorted(pages)), encoding="utf-8")
        os.replace(listing, out / LISTING)
        for name in names:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(aside / name, out / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for name in sorted(earlier - pages.keys()):
        _remove(out, name)
    return tuple(out / name for name in names)


def _listed(out: Path) -> set[str]:
    """Pages of the last rendering; names that lead out of the folder are not believed."""
    try:
        lines = (out / LISTING).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return set()
    return {
        line for line in lines if line and not line.startswith("/") and ".." not in PurePosixPath(line).parts
    }


def _remove(out: Path, name: str) -> None:
    page = out / name
    if not page.resolve().is_relative_to(out.resolve()):
        return
    page.unlink(missing_ok=True)
    for folder in page.parents:
        if folder == out or not folder.is_dir() or any(folder.iterdir()):
            break
        folder.rmdir()
