"""Any declared step, as the union of all kinds there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from draftrank import kinds

if TYPE_CHECKING:
    from draftrank.catalog.step import StepBase

    Step = StepBase
else:
    Step = Annotated[Union[kinds.load_kinds(kinds.STEPS)], Field(discriminator="kind")]  # noqa: UP007  (made at run time)

__all__ = ["Step"]
