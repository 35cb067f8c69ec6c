"""The form of a compression step; each kind lives in its own file of `building/steps`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from draftrank.catalog.base import Declared

if TYPE_CHECKING:
    from draftrank.building.working_draft import BuildContext, WorkingDraft


Phase = Literal["origin", "structure", "factors", "tying", "head", "sparsity", "training", "quantization"]
"""What a step changes; decides its position in a recipe (see `step_order`)."""
Trait = Literal[
    "factors",
    "trimmed head",
    "EAGLE-3 head",
    "norm before residual",
    "packed",
    "int8 at load",
    "shared layers",
    "gguf",
    "own vocabulary",
]
"""What makes a draft's model differ from an ordinary model of its architecture."""


class StepBase(Declared):
    """One step of a recipe: its knobs as fields, its work in `apply`."""

    kind: str
    technique: ClassVar[str]
    """Family shown on the board, e.g. `layer dropping`."""
    trains: ClassVar[bool] = False
    """Whether the step updates weights by gradient descent."""
    phase: ClassVar[Phase]
    """What it changes."""
    paper: ClassVar[str]
    """Paper of the method."""
    cost: ClassVar[str]
    """Build time, and effect on the draft's speed and agreement."""
    architectures: ClassVar[str] = "all"
    """Supported architectures, with the reason for exceptions."""
    code_version: ClassVar[int] = 1
    """Incremented when the step's result changes for equal fields; invalidates cached drafts."""
    adds: ClassVar[Trait | None] = None
    """What it adds to the model that other programs may not support; None: nothing."""

    @property
    def trait(self) -> Trait | None:
        """What these fields add; see `adds`."""
        return self.adds

    def sentence(self) -> str:
        """One sentence that describes the step."""
        raise TypeError(f"{type(self).__name__} says nothing")  # every subclass overrides this

    def check(self, draft: WorkingDraft) -> None:
        """Refuses a model whose architecture cannot have the step; asked before any step is applied.

        Raises:
            BuildError: it cannot; the message says why, and what would work.
        """
        if self.phase in ("head", "training"):
            _ = draft.architecture  # refuses a model without an embedding or a head
        elif self.phase not in ("origin", "quantization"):
            _ = draft.architecture.blocks  # refuses a model whose layers are not found

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
        """Changes the draft in place.

        Raises:
            BuildError: the step cannot be done on this model or machine; the message says why.
        """
        raise TypeError(f"{type(self).__name__} does nothing")  # every subclass overrides this
