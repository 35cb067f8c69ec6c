"""Where bytes come from: one file per kind of source, for targets and task data alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from draftrank import kinds

if TYPE_CHECKING:
    from draftrank.catalog.sources.base import SourceBase

    Source = SourceBase
else:
    Source = Annotated[Union[kinds.load_kinds(kinds.SOURCES)], Field(discriminator="kind")]  # noqa: UP007  (made at run time)

__all__ = ["Source"]
