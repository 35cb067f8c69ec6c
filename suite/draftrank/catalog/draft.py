"""The form of what proposes tokens; each kind lives in its own file of `engine/proposers`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from draftrank.catalog.base import Declared
from draftrank.catalog.programs import ProgramUse
from draftrank.catalog.self_generated import CALIBRATION, SelfGenerated
from draftrank.catalog.step import StepBase, Trait

if TYPE_CHECKING:
    from draftrank.engine.proposer import Proposer, ProposerContext


Vocabulary = Literal["same", "token_intersection", "string_match"]
"""How the tokens of a draft's model become the target's."""


class DraftBase(Declared):
    """A kind of draft: its knobs as fields, its work in `open`."""

    kind: str
    technique: ClassVar[str]
    """Family shown on the board, e.g. `n-gram`."""
    has_confidence: ClassVar[bool] = False
    """Whether proposed tokens have probabilities, which `stop_below_confidence` needs."""
    branches: ClassVar[bool] = False
    """Whether it can propose alternatives, which `branch_above_probability` needs."""
    has_weights: ClassVar[bool] = False
    """Whether a model of its own must be built before it can propose."""
    served_only: ClassVar[bool] = False
    """Whether only external engines run it, so that `draftrank serve-bench` alone measures it."""

    @property
    def build_steps(self) -> tuple[StepBase, ...]:
        """The steps that make the draft's weights, in order; empty when it has none of its own."""
        return ()

    @property
    def calibration_text(self) -> SelfGenerated:
        """Text for steps that read activations."""
        return CALIBRATION

    @property
    def vocabulary_mode(self) -> Vocabulary:
        """How its model's tokens become the target's; `same` for drafts without a model."""
        return "same"

    @property
    def techniques(self) -> tuple[str, ...]:
        """How the draft was made, in words for the board, without repetition."""
        return tuple(dict.fromkeys(step.technique for step in self.build_steps)) or (self.technique,)

    @property
    def traits(self) -> frozenset[Trait]:
        """What makes its model differ from an ordinary one of the target's architecture and vocabulary."""
        own: frozenset[Trait] = (
            frozenset() if self.vocabulary_mode == "same" else frozenset({"own vocabulary"})
        )
        return own | {step.trait for step in self.build_steps if step.trait is not None}

    @property
    def trained(self) -> bool:
        """Whether making it involved gradient descent."""
        return any(step.trains for step in self.build_steps)

    def sentence(self) -> str:
        """How the draft is made, in plain words."""
        return "; then ".join(step.sentence() for step in self.build_steps)

    def uses(self, model: str, folder: str, k: int) -> tuple[ProgramUse, ...]:
        """How other programs are given the draft; empty where none is known to take it.

        Args:
            model: the target, as programs load it: a repository or a path.
            folder: where a draft with weights of its own was exported to.
            k: tokens proposed per step.
        """
        return ()

    def open(self, context: ProposerContext) -> Proposer:
        """Makes the proposer for one target runtime.

        Raises:
            IncompatibleDraftError: the draft cannot serve this target.
        """
        raise TypeError(f"{type(self).__name__} proposes nothing")  # every subclass overrides this
