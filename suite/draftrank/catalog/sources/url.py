"""A file behind an https address, pinned by its hash."""

from __future__ import annotations

import urllib.request
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.error import URLError

from pydantic import StringConstraints

from draftrank.catalog.base import Sha256
from draftrank.catalog.sources.base import FetchContext, SourceBase, copy_bounded, fetch_once
from draftrank.errors import MissingDataError

TIMEOUT_S = 60


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """An address may lead on to another one, but never to one that is not encrypted."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if not newurl.startswith("https://"):
            raise URLError(f"it leads to {newurl[:200]!r}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_HttpsOnly)


class UrlSource(SourceBase):
    """One downloadable file."""

    kind: Literal["url"]
    url: Annotated[str, StringConstraints(pattern=r"^https://[^\s\x00-\x1f]+$", max_length=2000)]
    """The https address."""
    sha256: Sha256
    """Hash of the file."""

    def fetch(self, context: FetchContext) -> Path:
        name = Path(self.url.split("?", 1)[0]).name or "download"

        def write(staged: Path) -> None:
            try:
                with (
                    context.progress.stage(f"fetch {name}"),
                    _OPENER.open(self.url, timeout=TIMEOUT_S) as reply,
                    staged.open("wb") as output,
                ):
                    copy_bounded(reply, output, self.url)
            except (URLError, OSError) as error:
                raise MissingDataError(f"{self.url} could not be fetched: {error}") from error

        return fetch_once(context, self.sha256, name, self.url, write)
