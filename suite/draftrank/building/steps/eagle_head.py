"""A draft that reads what the target thought, beside what it said.

The target's hidden states hold far more of what comes next than its tokens do, so one layer that reads them agrees with the
target more often than several that do not. After the first proposed token the head reads its own state in place of the
target's, which does not exist yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from draftrank.building.steps.origin import source_name
from draftrank.catalog.base import Declared, Line
from draftrank.catalog.step import Phase, StepBase, Trait
from draftrank.catalog.target import ModelSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from draftrank.building.working_draft import BuildContext, WorkingDraft

LayerIndex = Annotated[int, Field(ge=1, le=10_000)]


class HeadFields(Declared):
    """What is declared of an EAGLE-3 head."""

    architecture: Literal["eagle3"] = "eagle3"
    """`eagle3`: one Llama layer whose attention reads the token's embedding beside a state made from outputs of three of the
    target's layers."""
    aux_hidden_states: Annotated[tuple[LayerIndex, ...], Field(min_length=1, max_length=8)] | None = None
    """Auxiliary hidden states that the head reads, ascending, as Hugging Face numbers `hidden_states`: index i is what
    layer i reads. Absent: the published convention, 2, n // 2 and n - 3 of n layers."""
    source: ModelSource | None = None
    """A published head: a folder with `config.json` and safetensors in the layout of the EAGLE repositories, of SpecForge and
    SGLang, or of `speculators`. Absent: a new head, to be trained."""
    licence: Line | None = None
    """Licence of its weights, as an SPDX identifier where there is one; with `source`."""
    training_data: Line | None = None
    """Its training data, as its authors state it; with `source`."""

    @field_validator("aux_hidden_states")
    @classmethod
    def _ascending(cls, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if layers is not None and list(layers) != sorted(set(layers)):
            raise ValueError("the states must be ascending and named once (fix: sort them)")
        return layers

    @model_validator(mode="after")
    def _new_or_published(self) -> Self:
        if self.source is not None:
            if self.aux_hidden_states is not None:
                raise ValueError("a published head says itself what it reads (fix: remove aux_hidden_states)")
            if self.licence is None:
                raise ValueError("the licence of a published head is missing (fix: add `licence`)")
            if self.source.kind == "inline":  # type: ignore[attr-defined]
                raise ValueError("a published head is a folder (fix: use a source of another kind)")
        elif self.licence is not None or self.training_data is not None:
            raise ValueError("licence and training_data are those of a published head (fix: add `source`)")
        return self


class EagleHead(HeadFields, StepBase):
    """Puts an EAGLE-3 head of the target in the copy's place: a published one, or a new one that needs `distill` afterwards."""

    technique: ClassVar[str] = "EAGLE-3 head"
    phase: ClassVar[Phase] = "origin"
    adds: ClassVar[Trait | None] = "EAGLE-3 head"
    paper: ClassVar[str] = "EAGLE-3 (arXiv:2503.01840)"
    cost: ClassVar[str] = "the download of a published head; a new one is worthless until it is trained"
    architectures: ClassVar[str] = "those whose layers carry one state of each token"

    kind: Literal["eagle_head"]

    @property
    def touches_layers(self) -> bool:
        return True

    def sentence(self) -> str:
        if self.source is not None:
            return f"replace it by the EAGLE-3 head {source_name(self.source)}, which reads the target's hidden states"
        named = self.aux_hidden_states
        which = (
            "hidden states of three layers"
            if named is None
            else f"hidden states {', '.join(map(str, named))}"
        )
        return f"make it an EAGLE-3 head, which reads the target's {which} beside each token"

    def check(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.surgery.eagle_head import require_states

        require_states(draft.model)
        if self.source is None:
            self._read_layers(len(draft.architecture.blocks))

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.surgery.eagle_head import model_of_published, new_eagle3_head
        from draftrank.errors import BuildError
        from draftrank.models.eagle_layouts import read_published_head

        if self.source is not None:
            folder = self.source.fetch(context.fetch)
            if not folder.is_dir():
                raise BuildError(f"{folder} is no folder: name the folder of a published head")
            draft.model, forms = model_of_published(read_published_head(folder), draft.model)
            draft.forms += forms
            return
        depth = len(draft.architecture.blocks)
        draft.model, form = new_eagle3_head(draft.model, self._read_layers(depth))
        draft.forms.append(form)

    def _read_layers(self, depth: int) -> tuple[int, ...]:
        """Layers of a target of this depth whose outputs a new head reads, from 0.

        Raises:
            BuildError: it has not these layers.
        """
        from draftrank.building.surgery.eagle_head import published_layers
        from draftrank.errors import BuildError

        if self.aux_hidden_states is None:
            return published_layers(depth)
        if (last := self.aux_hidden_states[-1]) >= depth:
            raise BuildError(
                f"the target has layers 0 to {depth - 1}, and aux_hidden_states names {last}: write at most {depth - 1}"
            )
        return tuple(index - 1 for index in self.aux_hidden_states)


class NormBeforeResidual(StepBase):
    """Lets an EAGLE-3 head's layer add to the normed state, not to the state. Needs `distill` afterwards.

    A head that continues from its own state adds to that state once more with every token. Unnormed it grows, and what the
    layer adds for a new token weighs less and less; normed it keeps the size that it has for the first token.
    """

    technique: ClassVar[str] = "EAGLE-3 head"
    phase: ClassVar[Phase] = "head"
    adds: ClassVar[Trait | None] = "norm before residual"
    paper: ClassVar[str] = "`norm_before_residual` of the package speculators; EAGLE-3 (arXiv:2503.01840)"
    cost: ClassVar[str] = (
        "seconds; agreement on the second and later tokens ahead grows with training; SGLang does not read it"
    )

    kind: Literal["norm_before_residual"]

    def sentence(self) -> str:
        return "let its layer add to the normed state, which so keeps its size from token to token"

    def fault(self, before: Sequence[StepBase]) -> str | None:
        traits = [step.trait for step in before]
        if "EAGLE-3 head" not in traits:
            return (
                "norm_before_residual changes an EAGLE-3 head, and this draft has none (fix: write `kind: eagle`, or remove "
                "the step)"
            )
        if self.trait in traits:
            return "norm_before_residual stands twice (fix: write it once)"
        return None

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.surgery.eagle_head import norm_before_residual
        from draftrank.building.text.corpus import calibration_tokens
        from draftrank.models.loading import load_model

        target = load_model(context.target_folder, "fp32", context.device)
        draft.notes["state_size"] = norm_before_residual(draft, target, calibration_tokens(context))
