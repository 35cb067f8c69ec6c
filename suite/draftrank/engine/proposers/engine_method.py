"""A method of an external engine under the engine's own name, so that anything an engine can run is ranked there.

This engine does not run it: `draftrank serve-bench` measures it in servers.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints, field_validator

from draftrank.catalog.base import Line
from draftrank.catalog.draft import DraftBase
from draftrank.catalog.sources.base import SourceBase
from draftrank.catalog.target import ModelSource
from draftrank.engine.proposer import Proposer, ProposerContext
from draftrank.errors import IncompatibleDraftError

OptionName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
OptionValue = bool | int | float | Line


class EngineMethod(DraftBase):
    """A method of an external engine, e.g. `mtp` or `dflash` of vLLM. It is measured by `draftrank serve-bench` only."""

    technique: ClassVar[str] = "engine method"
    served_only: ClassVar[bool] = True

    kind: Literal["engine_method"]
    method: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    """The method as the engine names it, e.g. `eagle3`, `mtp`, `medusa` or `ngram-mod`."""
    source: ModelSource | None = None
    """Where its weights come from: kind `hub` or `local`. Absent: it has none beside the target's."""
    options: dict[OptionName, OptionValue] = Field(default_factory=dict)
    """More settings of the method as the engine names them. The server's engine checks them before anything starts."""

    @field_validator("source")
    @classmethod
    def _a_folder(cls, source: SourceBase | None) -> SourceBase | None:
        if source is not None and source.kind not in ("hub", "local"):  # type: ignore[attr-defined]
            raise ValueError("a method's weights come from a hub or local source (fix: use one of them)")
        return source

    @property
    def techniques(self) -> tuple[str, ...]:
        return (self.method,)

    def sentence(self) -> str:
        return f"the engine's own method {self.method}"

    def open(self, context: ProposerContext) -> Proposer:
        raise IncompatibleDraftError(
            f"{self.method} is a method of external engines: measure it with `draftrank serve-bench`"
        )
