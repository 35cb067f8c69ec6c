"""A draft model with a cache of its own, made from the target by the recipe's steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from draftrank.catalog.draft import DraftBase
from draftrank.catalog.programs import ProgramUse, abilities_of, uses_of_model
from draftrank.catalog.self_generated import CALIBRATION, CorpusText, SelfGenerated
from draftrank.catalog.step import StepBase
from draftrank.catalog.step_order import order_fault
from draftrank.catalog.steps import Step
from draftrank.engine.proposer import Proposal, ProposerContext
from draftrank.engine.proposers.drafting import PLAIN, Drafting, SteppingModel, draft_tokens, drafting_of
from draftrank.engine.proposers.eagle import EagleProposer
from draftrank.errors import IncompatibleDraftError

if TYPE_CHECKING:
    from draftrank.engine.backends.base import Runtime
    from draftrank.engine.sampling import Sampler


class ModelBasedDraft(DraftBase):
    """What all drafts have in common that propose with a model made by steps."""

    technique: ClassVar[str] = "model"
    has_confidence: ClassVar[bool] = True
    branches: ClassVar[bool] = True

    steps: Annotated[tuple[Step, ...], Field(min_length=1, max_length=32)]
    """Steps applied to a copy of the target, in order."""
    calibration: CorpusText | None = None
    """Text for steps that read activations: the name of a corpus, or a text in place. Absent: 4,096 tokens
    that the target writes."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        fault = order_fault(self.steps)
        if fault is not None:
            raise ValueError(fault)
        return self

    @property
    def calibration_text(self) -> SelfGenerated:
        """See `DraftBase.calibration_text`."""
        return self.calibration or CALIBRATION

    @property
    def build_steps(self) -> tuple[StepBase, ...]:
        """See `DraftBase.build_steps`."""
        return self.steps

    @property
    def has_weights(self) -> bool:
        """See `DraftBase.has_weights`."""
        return True

    def sentence(self) -> str:
        """See `DraftBase.sentence`."""
        return "from a copy of the target: " + super().sentence()

    def open_model(self, context: ProposerContext) -> ModelProposer | EagleProposer:
        """The model as a proposer; raises as `open`."""
        from draftrank.engine.backends.own_forward import check_trees
        from draftrank.engine.backends.registry import load_gguf_runtime, open_eagle_runtime, open_runtime
        from draftrank.models.forms import GgufForm, HiddenStatesForm
        from draftrank.models.gguf_format import GGUF_FILE
        from draftrank.models.loading import load_model, read_forms
        from draftrank.models.vocabulary import check_vocabularies

        if context.draft_folder is None:
            raise IncompatibleDraftError("the draft has not been built: run `draftrank build` first")
        check_vocabularies(context.target_folder, context.draft_folder)
        forms, drafting = read_forms(context.draft_folder), drafting_of(context)
        rows = context.target.vocabulary_size
        is_gguf = any(isinstance(form, GgufForm) for form in forms)
        if is_gguf != (context.backend == "llama.cpp"):
            what = "a GGUF file, which llama.cpp runs" if is_gguf else "no GGUF file, which llama.cpp needs"
            raise IncompatibleDraftError(f"the backend {context.backend} cannot run the draft: it is {what}")
        if is_gguf:
            return ModelProposer(load_gguf_runtime(context.draft_folder / GGUF_FILE, rows), drafting)
        model = load_model(context.draft_folder, context.dtype, context.device, rows=rows)
        if not any(isinstance(form, HiddenStatesForm) for form in forms):
            draft = open_runtime(model, context.backend)
            if drafting.branch_above is not None:
                check_trees(draft)
            return ModelProposer(draft, drafting)
        if not context.target.capabilities.hidden_states:
            raise IncompatibleDraftError(
                f"the runtime {context.target.name} does not tell a model's hidden states"
            )
        reader = open_eagle_runtime(model, context.backend)
        if drafting.branch_above is not None:
            check_trees(reader)
        return EagleProposer(context.target, reader, drafting)


class ModelDraft(ModelBasedDraft):
    """A smaller language model over the target's vocabulary."""

    kind: Literal["draft_model"]

    def uses(self, model: str, folder: str, k: int) -> tuple[ProgramUse, ...]:
        """See `DraftBase.uses`."""
        traits = {step.trait for step in self.steps if step.trait is not None}
        return uses_of_model(abilities_of(traits), model, folder, k, gguf_file="DRAFT.gguf")

    def open(self, context: ProposerContext) -> ModelProposer | EagleProposer:
        """See `DraftBase.open`."""
        return self.open_model(context)


class ModelProposer(SteppingModel):
    """Decodes up to k tokens with the draft, one forward each.

    Its cache lags behind the context by the tokens it has not seen: one after a rejection, two when
    everything was accepted, because it never read its own last proposal; more where others proposed since.
    """

    def __init__(self, draft: Runtime, drafting: Drafting = PLAIN) -> None:
        super().__init__(drafting)
        self._draft = draft
        self._sampler: Sampler | None = None
        self._asked_at = 0
        self._proposal = Proposal([])

    def begin(self, prompt: Sequence[int], sampler: Sampler, reserve: int) -> None:
        """See `Proposer.begin`; prefills the draft, unless its window is too short to propose anything."""
        self._sampler = sampler
        self._draft.reset()
        if self._readable(len(prompt) + 1, 1):
            self._draft.reserve(min(reserve, self._draft.context_window))
            self._draft.forward(prompt, keep=1)

    def propose(self, context: Sequence[int], count: int) -> Proposal:
        """See `Proposer.propose`."""
        assert self._sampler is not None
        count = self._readable(len(context), count)
        if not count:
            self._proposal = Proposal([])
            return self._proposal
        unseen = context[self._draft.length :]
        self._proposal = draft_tokens(self._draft, self._sampler, unseen, count, self._drafting)
        self._asked_at = len(context)
        return self._proposal

    def accept(self, tokens: Sequence[int]) -> None:
        """See `Proposer.accept`; of the accepted tokens the draft keeps those that it has read."""
        if not self._proposal.forwards:
            return
        path, drafted = self._proposal.path(tokens), self._proposal.drafted
        if drafted is None:
            read: Sequence[int] = range(min(len(path), self._proposal.forwards - 1) + 1)
        else:
            read = (0, *(drafted[index] for index in path if drafted[index]))
        self._draft.commit(self._asked_at - 1, read)

    def runtime(self) -> Runtime:
        """See `Proposer.runtime`."""
        return self._draft
