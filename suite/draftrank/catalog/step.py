"""The form of a compression step; each kind lives in its own file of `building/steps`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from draftrank.catalog.base import Declared

if TYPE_CHECKING:
    from draftrank.building.working_draft import BuildContext, WorkingDraft


Phase = Literal[
    "origin", "structure", "factors", "tying", "head", "sparsity", "input", "healing", "precision"
]
"""What a step changes, which decides where in a recipe it may stand (see `step_order`)."""
Trait = Literal[
    "factors", "trimmed head", "target hidden states", "packed", "int8 at load", "shared layers", "gguf"
]
"""What sets a draft's model apart from an ordinary one of its architecture."""


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
    """Where the method comes from."""
    cost: ClassVar[str]
    """What the build takes, and what the draft gains or loses by it, in a few words."""
    architectures: ClassVar[str] = "all"
    """Which ones it works on, and why not on others."""
    code_version: ClassVar[int] = 1
    """Raised when the step's result changes for equal knobs, so that caches are not reused."""

    @property
    def trait(self) -> Trait | None:
        """What it leaves in the model that other programs may not know; None: nothing."""
        return None

    def sentence(self) -> str:
        """The step in plain words."""
        raise TypeError(f"{type(self).__name__} says nothing")  # every subclass overrides this

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
        """Changes the draft in place.

        Raises:
            BuildError: the step cannot be done on this model or machine; the message says why.
        """
        raise TypeError(f"{type(self).__name__} does nothing")  # every subclass overrides this
