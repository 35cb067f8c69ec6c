"""A draft that reads what the target thought, beside what it said.

The target's hidden states hold far more of what comes next than its tokens do, so one layer that reads them agrees with the
target more often than several that do not. After the first proposed token the head reads its own state in place of the
target's, which does not exist yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from draftrank.catalog.base import Declared
from draftrank.catalog.step import Phase, StepBase, Trait

if TYPE_CHECKING:
    from draftrank.building.working_draft import BuildContext, WorkingDraft

LayerIndex = Annotated[int, Field(ge=1, le=10_000)]


class HeadFields(Declared):
    """What is declared of an EAGLE head."""

    architecture: Literal["eagle3"] = "eagle3"
    """`eagle3`: one Llama layer whose attention reads the token's embedding beside a state made from outputs of three of the
    target's layers."""
    aux_hidden_states: Annotated[tuple[LayerIndex, ...], Field(min_length=1, max_length=8)] | None = None
    """Auxiliary hidden states that the head reads, ascending, as Hugging Face numbers `hidden_states`: index i is what
    layer i reads. Absent: the published convention, 2, n // 2 and n - 3 of n layers."""
    begin_with: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """Target layer whose weights the head begins with, where the sizes agree; absent: the last one."""

    @field_validator("aux_hidden_states")
    @classmethod
    def _ascending(cls, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if layers is not None and list(layers) != sorted(set(layers)):
            raise ValueError("the states must be ascending and named once (fix: sort them)")
        return layers


class EagleHead(HeadFields, StepBase):
    """Puts an EAGLE head of the target in the copy's place. Needs `distill` afterwards."""

    technique: ClassVar[str] = "EAGLE head"
    phase: ClassVar[Phase] = "origin"
    paper: ClassVar[str] = "EAGLE-3 (arXiv:2503.01840)"
    cost: ClassVar[str] = "nothing; worthless until it is trained"
    architectures: ClassVar[str] = "all whose layers are attention and a feed-forward network"

    kind: Literal["eagle_head"]

    @property
    def trait(self) -> Trait | None:
        """See `StepBase.trait`."""
        return "target hidden states"

    def sentence(self) -> str:
        """See `StepBase.sentence`."""
        named = self.aux_hidden_states
        which = (
            "hidden states of three layers"
            if named is None
            else f"hidden states {', '.join(map(str, named))}"
        )
        return f"make it an EAGLE-3 head, which reads the target's {which} beside each token"

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
        """See `StepBase.apply`."""
        from draftrank.building.surgery.eagle_head import new_eagle3_head, published_layers
        from draftrank.errors import BuildError

        depth = len(draft.architecture.blocks)
        for field, last in (
            ("aux_hidden_states", (self.aux_hidden_states or (0,))[-1]),
            ("begin_with", self.begin_with or 0),
        ):
            if last >= depth:
                raise BuildError(
                    f"the target has layers 0 to {depth - 1}, and {field} names {last}: write at most {depth - 1}"
                )
        layers = (
            published_layers(depth)
            if self.aux_hidden_states is None
            else tuple(index - 1 for index in self.aux_hidden_states)
        )
        begin_with = depth - 1 if self.begin_with is None else self.begin_with
        draft.model, form = new_eagle3_head(draft.model, layers, begin_with)
        draft.forms.append(form)
