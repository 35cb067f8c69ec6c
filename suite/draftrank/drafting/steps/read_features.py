"""Let the draft read what the target thought, beside what it said.

The target's last hidden state holds far more of what comes next than its token does, so one layer that reads it
agrees with the target more often than several that do not. After the first proposed token the draft reads its own
hidden state in place of the target's, which does not exist yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from draftrank.catalog.step import Phase, StepBase, Trait

if TYPE_CHECKING:
    from draftrank.drafting.working_draft import BuildContext, WorkingDraft


class ReadFeatures(StepBase):
    """Each token is read together with the target's last hidden state before it; needs `distill` afterwards."""

    technique: ClassVar[str] = "target features"
    phase: ClassVar[Phase] = "input"
    paper: ClassVar[str] = "EAGLE (arXiv:2401.15077)"
    cost: ClassVar[str] = "nothing; one more matrix per forward, and worthless until it is trained"
    architectures: ClassVar[str] = "all, with the target's hidden size"

    kind: Literal["read_features"]

    @property
    def trait(self) -> Trait | None:
        """See `StepBase.trait`."""
        return "target features"

    def sentence(self) -> str:
        """See `StepBase.sentence`."""
        return "let it read the target's last hidden state beside each token"

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
        """See `StepBase.apply`."""
        from draftrank.drafting.forms import FeaturesForm

        form = FeaturesForm()
        form.prepare(draft.model)
        draft.forms.append(form)
