"""A draft model with a cache of its own, made from the target by the recipe's steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from draftrank.catalog.draft import DraftBase
from draftrank.catalog.precision import Forward
from draftrank.catalog.programs import ProgramUse, abilities_of, uses_of_model
from draftrank.catalog.self_generated import CALIBRATION, CorpusText, SelfGenerated
from draftrank.catalog.step import StepBase
from draftrank.catalog.step_order import order_fault
from draftrank.catalog.steps import Step
from draftrank.engine.proposer import Proposal, ProposerContext
from draftrank.engine.proposers.drafting import PLAIN, Drafting, SteppingModel, draft_tokens, drafting_of
from draftrank.engine.proposers.eagle import EagleProposer
from draftrank.engine.runtime import HiddenStateRuntime, TreeRuntime
from draftrank.errors import IncompatibleDraftError

if TYPE_CHECKING:
    from draftrank.engine.runtime import Runtime
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
        from draftrank.engine.backends.llama_cpp.runtime import LlamaCppRuntime
        from draftrank.engine.backends.opening import eagle_runtime_of, runtime_of_model
        from draftrank.engine.backends.own_forward import check_trees
        from draftrank.models.forms import GgufForm, HiddenStatesForm
        from draftrank.models.gguf_format import GGUF_FILE
        from draftrank.models.loading import compute_dtype, load_model, read_forms
        from draftrank.models.vocabulary import check_vocabularies

        if context.draft_folder is None:
            raise IncompatibleDraftError("the draft has not been built: run `draftrank build` first")
        check_vocabularies(context.target_folder, context.draft_folder)
        forms, drafting = read_forms(context.draft_folder), drafting_of(context)
        rows = context.target.vocabulary_size
        if any(isinstance(form, GgufForm) for form in forms):
            file = LlamaCppRuntime(context.draft_folder / GGUF_FILE, vocabulary=rows)
            return ModelProposer(file, drafting)
        # Beside a target in llama.cpp, a draft in torch computes as fast as it can.
        dtype = compute_dtype(context.device) if context.dtype == "gguf" else context.dtype
        forward: Forward = "fused" if context.dtype == "gguf" else context.forward
        model = load_model(context.draft_folder, dtype, context.device, rows=rows)
        if not any(isinstance(form, HiddenStatesForm) for form in forms):
            draft = runtime_of_model(model, forward)
            if drafting.branch_above is not None:
                check_trees(draft)
            return ModelProposer(draft, drafting)
        if not isinstance(context.target, HiddenStateRuntime):
            raise IncompatibleDraftError(
                f"the runtime {context.target.name} does not tell a model's hidden states"
            )
        reader = eagle_runtime_of(model, forward)
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
    everything was accepted, because its own last proposal was never fed; more where others proposed since.
    """

    def __init__(self, draft: Runtime, drafting: Drafting = PLAIN) -> None:
        super().__init__(drafting)
        self._draft = draft
        self._sampler: Sampler | None = None
        self._settled = 0
        self._proposal = Proposal([])

    def begin(self, prompt: Sequence[int], sampler: Sampler, reserve: int) -> None:
        """See `Proposer.begin`; prefills the draft, unless its window is too short to propose anything."""
        self._sampler = sampler
        self._draft.reset()
        if self._readable(len(prompt) + 1, 1):
            self._draft.reserve(min(reserve, self._draft.context_window))
            self._draft.feed(prompt, keep=1)

    def propose(self, context: Sequence[int], count: int) -> Proposal:
        """See `Proposer.propose`."""
        assert self._sampler is not None
        count = self._readable(len(context), count)
        if not count:
            self._proposal = Proposal([])
            return self._proposal
        unseen = context[self._draft.length :]
        self._proposal = draft_tokens(self._draft, self._sampler, unseen, count, self._drafting)
        self._settled = len(context)
        return self._proposal

    def settle(self, accepted: Sequence[int]) -> None:
        """See `Proposer.settle`; what the draft has read of what stands stays."""
        if not self._proposal.forwards:
            return
        path, drafted = self._proposal.path(accepted), self._proposal.drafted
        if drafted is None:
            standing: Sequence[int] = range(min(len(path), self._proposal.forwards - 1) + 1)
        else:
            standing = (0, *(drafted[place] for place in path if drafted[place]))
        if list(standing) == list(range(len(standing))):
            self._draft.forget(self._draft.length - self._settled + 1 - len(standing))
        else:
            assert isinstance(self._draft, TreeRuntime)
            self._draft.keep_path(self._settled - 1, standing)

    def watch(self, accepted: Sequence[int]) -> None:
        """See `Proposer.watch`; it catches up when it is asked."""

    def runtime(self) -> Runtime:
        """See `Proposer.runtime`."""
        return self._draft
