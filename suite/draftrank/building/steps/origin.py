"""Drafts that do not begin with the target's weights: a ready-made model, or none that was trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from draftrank.catalog.base import Line
from draftrank.catalog.sources import Source
from draftrank.catalog.sources.base import SourceBase
from draftrank.catalog.step import Phase, StepBase

if TYPE_CHECKING:
    from draftrank.building.working_draft import BuildContext, WorkingDraft


class Pretrained(StepBase):
    """A ready-made model with the target's vocabulary."""

    technique: ClassVar[str] = "ready-made model"
    phase: ClassVar[Phase] = "origin"
    paper: ClassVar[str] = "Leviathan et al. (arXiv:2211.17192)"
    cost: ClassVar[str] = "the download; agreement and speed are those of the model"

    kind: Literal["pretrained"]
    source: Source
    """Where its folder comes from: a repository of the hub at a full commit, or a local folder."""
    licence: Line
    """Licence of its weights, as an SPDX identifier where there is one."""
    training_data: Line | None = None
    """Its training data, as its authors state it."""

    @field_validator("source")
    @classmethod
    def _a_folder(cls, source: SourceBase) -> SourceBase:
        if source.kind not in ("hub", "local"):  # type: ignore[attr-defined]
            raise ValueError("a model is a folder (fix: use a source of kind `hub` or `local`)")
        return source

    def sentence(self) -> str:
        """See `StepBase.sentence`."""
        name = getattr(self.source, "repository", None) or getattr(self.source, "path", "")
        return f"replace it by the model {name}"

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
        """See `StepBase.apply`."""
        from draftrank.building.origins import take_pretrained

        take_pretrained(draft, self.source, context)


class Random(StepBase):
    """A control with untrained, random weights."""

    technique: ClassVar[str] = "random weights"
    phase: ClassVar[Phase] = "origin"
    paper: ClassVar[str] = "a control, from no paper"
    cost: ClassVar[str] = "seconds; accepts next to nothing"

    kind: Literal["random"]
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the architecture's own initialization."""

    def sentence(self) -> str:
        """See `StepBase.sentence`."""
        return f"draw all weights at random (seed {self.seed})"

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
        """See `StepBase.apply`."""
        from draftrank.building.origins import draw_at_random

        draw_at_random(draft, self.seed)
