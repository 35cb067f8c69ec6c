"""Let the draft read what the target thought, beside what it said.

The target's last hidden state holds far more of what comes next than its token does, so one layer that reads it
agrees with the target more often than several that do not; earlier layers hold what the last one has dropped. After the
first proposed token the draft reads its own hidden state in place of the target's, which does not exist yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from draftrank.catalog.step import Phase, StepBase, Trait

if TYPE_CHECKING:
    from draftrank.building.working_draft import BuildContext, WorkingDraft


class ReadHiddenStates(StepBase):
    """Turns the model into an EAGLE head: it reads the target's hidden state beside each token. Needs
    `distill` afterwards."""

    technique: ClassVar[str] = "EAGLE head"
    phase: ClassVar[Phase] = "input"
    paper: ClassVar[str] = "EAGLE (arXiv:2401.15077); layers: EAGLE-3 (arXiv:2503.01840)"
    cost: ClassVar[str] = "nothing; one more matrix per forward, and worthless until it is trained"
    architectures: ClassVar[str] = "all that end in a norm and keep no state, with the target's hidden size"

    kind: Literal["read_hidden_states"]
    layers: (
        Annotated[tuple[Annotated[int, Field(ge=0, le=10_000)], ...], Field(min_length=1, max_length=4)]
        | None
    ) = None
    """Target layers (from 0, ascending) whose outputs are read as auxiliary hidden states beside the final
    one; absent: the final one alone."""

    @model_validator(mode="after")
    def _ascending(self) -> ReadHiddenStates:
        if self.layers is not None and list(self.layers) != sorted(set(self.layers)):
            raise ValueError("layers must be ascending and named once (fix: sort them)")
        return self

    @property
    def trait(self) -> Trait | None:
        """See `StepBase.trait`."""
        return "target hidden states"

    def sentence(self) -> str:
        """See `StepBase.sentence`."""
        more = f" and the outputs of its layers {', '.join(map(str, self.layers))}" if self.layers else ""
        return f"read the target's final hidden state{more} beside each token"

    def check(self, draft: WorkingDraft) -> None:
        """See `StepBase.check`."""
        from draftrank.building.surgery.fitting import require_embeddings_read

        require_embeddings_read(draft)

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
        """See `StepBase.apply`."""
        from transformers import AutoConfig

        from draftrank.errors import BuildError
        from draftrank.models.forms import HiddenStatesForm

        config = AutoConfig.from_pretrained(context.target_folder, local_files_only=True)
        depth = int(config.get_text_config().num_hidden_layers)
        if self.layers and self.layers[-1] >= depth:
            raise BuildError(
                f"the target has layers 0 to {depth - 1}: read_hidden_states cannot read layer {self.layers[-1]}"
            )
        form = HiddenStatesForm(layers=self.layers or ())
        form.prepare(draft.model)
        draft.forms.append(form)
