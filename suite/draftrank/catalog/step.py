"""The form of a compression step; each kind lives in its own file of `building/steps`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from draftrank.catalog.base import Declared

if TYPE_CHECKING:
    from collections.abc import Sequence

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

    @property
    def touches_layers(self) -> bool:
        """Whether it reads or changes single layers of the model, which must then be found."""
        return self.phase in ("structure", "factors", "tying", "sparsity")

    def sentence(self) -> str:
        """One sentence that describes the step."""
        raise TypeError(f"{type(self).__name__} says nothing")  # every subclass overrides this

    def fault(self, before: Sequence[StepBase]) -> str | None:
        """What these fields need of the steps `before` that is not so, with the fix; None: nothing."""
        return None

    def check(self, draft: WorkingDraft, context: BuildContext) -> None:
        """Refuses what cannot be done with this model on this machine, so that no step's work is lost: asked before any step is
        applied, before each step that trains, and right before this one.

        Raises:
            DraftrankError: it cannot be done; the message says why, and what would work.
        """
        if self.touches_layers:
            _ = draft.architecture.blocks  # refuses a model whose layers are not found
        elif self.phase in ("head", "training"):
            _ = draft.architecture  # refuses a model without an embedding or a head

    def check_shape(self, draft: WorkingDraft, context: BuildContext) -> None:
        """Refuses a model whose layers, as they are once no step before this one cuts it any more, cannot have the step.

        Raises:
            BuildError: they cannot; the message says why, and what would work.
        """

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
        """Changes the draft in place.

        Raises:
            BuildError: the step cannot be done on this model or machine; the message says why.
        """
        raise TypeError(f"{type(self).__name__} does nothing")  # every subclass overrides this
