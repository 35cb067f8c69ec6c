"""A file that is already here: in the workspace, or in a folder the user names for data."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from draftrank.catalog.base import RelativePath, Sha256
from draftrank.catalog.sources.base import FetchContext, SourceBase, check_sha256
from draftrank.errors import InvalidInputError, MissingDataError


class LocalSource(SourceBase):
    """Looked up in the workspace first, then in the folders of DRAFTRANK_DATA."""

    kind: Literal["local"]
    path: RelativePath
    """Path of a file (or a model folder) relative to those folders; it may not leave them."""
    sha256: Sha256 | None = None
    """Hash of the file; required for task data, impossible for a folder."""

    def fetch(self, context: FetchContext) -> Path:
        relative = Path(self.path)
        for root in context.roots:
            found = root / relative
            if not found.exists():
                continue
            if not found.resolve().is_relative_to(root.resolve()):
                raise InvalidInputError.single(
                    f"the path {self.path!r} leaves the workspace through a link",
                    field="source.path",
                    fix="copy the file into the workspace",
                )
            if self.sha256 is not None:
                check_sha256(found, self.sha256, self.path)
            return found
        raise MissingDataError(
            f"{self.path} is not here: put it into the workspace, or set DRAFTRANK_DATA to the "
            "folder that holds it"
        )
