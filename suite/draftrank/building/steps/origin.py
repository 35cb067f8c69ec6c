"""Drafts that do not begin with the target's weights: a ready-made model, or none that was trained."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from draftrank.catalog.base import Line
from draftrank.catalog.sources.base import SourceBase
from draftrank.catalog.step import Phase, StepBase
from draftrank.catalog.target import ModelSource

if TYPE_CHECKING:
    from draftrank.building.working_draft import BuildContext, WorkingDraft


class Pretrained(StepBase):
    """A ready-made model, with the target's vocabulary or its own."""

    technique: ClassVar[str] = "ready-made model"
    phase: ClassVar[Phase] = "origin"
    paper: ClassVar[str] = "Leviathan et al. (arXiv:2211.17192)"
    cost: ClassVar[str] = "the download; agreement and speed are those of the model"

    kind: Literal["pretrained"]
    source: ModelSource
    """Where it comes from: the id of a declared target, or a source. A folder (`hub`, `local`), or a GGUF file."""
    licence: Line
    """Licence of its weights, as an SPDX identifier where there is one."""
    training_data: Line | None = None
    """Its training data, as its authors state it."""

    @field_validator("source")
    @classmethod
    def _a_model(cls, source: SourceBase) -> SourceBase:
        if source.kind == "inline":  # type: ignore[attr-defined]
            raise ValueError("a model is a folder or a GGUF file (fix: use a source of another kind)")
        return source

    def sentence(self) -> str:
        return f"replace it by the model {source_name(self.source)}"

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
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
        return f"draw all weights at random (seed {self.seed})"

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.origins import draw_at_random

        draw_at_random(draft, self.seed)


def source_name(source: SourceBase) -> str:
    """What a model is called by where it comes from."""
    parts = getattr(source, "parts", None)
    if parts:
        return PurePosixPath(parts[0].path).stem
    named = (getattr(source, field, None) for field in ("repository", "path", "url"))
    return next((str(name) for name in named if name), "")
