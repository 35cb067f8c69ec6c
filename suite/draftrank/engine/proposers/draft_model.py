"""A draft model with a KV cache of its own, made by the recipe's steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from draftrank.building.steps.distill import Distill
from draftrank.building.steps.eagle_head import EagleHead, HeadFields
from draftrank.catalog.draft import DraftBase, Vocabulary
from draftrank.catalog.programs import ProgramUse, uses_of_model
from draftrank.catalog.self_generated import CALIBRATION, CorpusText, SelfGenerated
from draftrank.catalog.step import StepBase
from draftrank.catalog.step_order import order_fault
from draftrank.catalog.steps import Step
from draftrank.engine.proposer import Proposal, Proposer, ProposerContext
from draftrank.engine.proposers.drafting import PLAIN, Drafting, SteppingModel, draft_tokens, drafting_of
from draftrank.engine.proposers.eagle import EagleProposer
from draftrank.errors import IncompatibleDraftError

if TYPE_CHECKING:
    from draftrank.engine.backends.base import Runtime
    from draftrank.engine.proposers.other_vocabulary import OtherVocabularyProposer
    from draftrank.engine.sampling import Sampler

    ModelBasedProposer: TypeAlias = "ModelProposer | EagleProposer | OtherVocabularyProposer"
    """Whatever proposes with a model of its own."""


class ModelBasedDraft(DraftBase):
    """What all drafts have in common that propose with a model made by steps."""

    technique: ClassVar[str] = "model"
    has_confidence: ClassVar[bool] = True
    branches: ClassVar[bool] = True
    has_weights: ClassVar[bool] = True

    steps: Annotated[tuple[Step, ...], Field(min_length=1, max_length=32)]
    """Steps applied to a copy of the target, in order."""
    vocabulary: Vocabulary = "same"
    """How the draft's tokens become the target's. `same`: both have one tokenizer. For a `pretrained` model with
    another one, without loss (Timor et al., arXiv:2502.05202): `token_intersection` restricts the draft to tokens
    that both vocabularies have; `string_match` turns the draft's text into the target's tokens."""
    calibration: CorpusText | None = None
    """Text for steps that read activations: the name of a corpus, or a text in place. Absent: 4,096 tokens
    that the target writes."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        steps = self.build_steps
        for fault in (
            order_fault(self.steps),
            *(step.fault(steps[:place]) for place, step in enumerate(steps)),
        ):
            if fault is not None:
                raise ValueError(fault)
        return self

    @model_validator(mode="after")
    def _other_vocabulary(self) -> Self:
        if self.vocabulary == "same":
            if any(isinstance(step, Distill) and step.teacher == "origin" for step in self.steps):
                raise ValueError(
                    "`teacher: origin` is for drafts with a vocabulary of their own, and this one has the target's (fix: "
                    "remove it from distill)"
                )
            return self
        traits = self.traits
        if "EAGLE-3 head" in traits:
            raise ValueError(
                "an EAGLE-3 head reads the target's states token by token, so the draft must have the target's tokens (fix: "
                "remove `vocabulary`)"
            )
        if self.steps[0].kind != "pretrained":
            raise ValueError(
                f"`vocabulary: {self.vocabulary}` is for a model with another tokenizer, and this draft is a copy of the "
                "target (fix: make `pretrained` the first step, or remove `vocabulary`)"
            )
        if any(isinstance(step, Distill) and step.teacher == "target" for step in self.steps):
            raise ValueError(
                "distill cannot compare the distributions of two vocabularies (fix: write `teacher: origin`, the ready-made "
                "model, which reads the target's text in the draft's tokens)"
            )
        if "gguf" in traits and self.vocabulary == "token_intersection":
            raise ValueError(
                "token_intersection leaves out rows of the draft's head, and those of a GGUF file stay as they are (fix: "
                "write `vocabulary: string_match`, or remove write_gguf)"
            )
        return self

    @property
    def vocabulary_mode(self) -> Vocabulary:
        return self.vocabulary

    @property
    def calibration_text(self) -> SelfGenerated:
        return self.calibration or CALIBRATION

    @property
    def build_steps(self) -> tuple[StepBase, ...]:
        return self.steps

    def uses(self, model: str, folder: str, k: int) -> tuple[ProgramUse, ...]:
        return uses_of_model(self.traits, model, folder, k)

    def sentence(self) -> str:
        return "from a copy of the target: " + super().sentence() + _IN_WORDS[self.vocabulary]

    def open(self, context: ProposerContext) -> Proposer:
        return self.open_model(context)

    def open_model(self, context: ProposerContext) -> ModelBasedProposer:
        """The model as a proposer; raises as `open`."""
        from draftrank.engine.backends.own_forward import check_trees
        from draftrank.engine.backends.registry import load_gguf_runtime, open_eagle_runtime, open_runtime
        from draftrank.models.forms import Eagle3Form, GgufForm
        from draftrank.models.gguf_format import GGUF_FILE
        from draftrank.models.loading import load_model, read_forms

        if context.draft_folder is None:
            raise IncompatibleDraftError("the draft has not been built: run `draftrank build` first")
        forms, drafting = read_forms(context.draft_folder), drafting_of(context)
        tokens = self._tokens(context, context.draft_folder, drafting)
        is_gguf = any(isinstance(form, GgufForm) for form in forms)
        if is_gguf != (context.backend == "llama.cpp"):
            what = "a GGUF file, which llama.cpp runs" if is_gguf else "no GGUF file, which llama.cpp needs"
            raise IncompatibleDraftError(f"the backend {context.backend} cannot run the draft: it is {what}")
        if is_gguf:
            return tokens.proposer(load_gguf_runtime(context.draft_folder / GGUF_FILE, tokens.rows))
        model = load_model(
            context.draft_folder, context.dtype, context.device, rows=tokens.rows, known=tokens.known
        )
        if not any(isinstance(form, Eagle3Form) for form in forms):
            draft = open_runtime(model, context.backend)
            if drafting.branch_above is not None:
                check_trees(draft)
            return tokens.proposer(draft)
        if not context.target.capabilities.hidden_states:
            raise IncompatibleDraftError(
                f"the backend {context.target.name} does not tell this target's hidden states, which an EAGLE-3 head reads: use "
                "another backend, or a draft that reads tokens alone"
            )
        reader = open_eagle_runtime(model, context.backend)
        if drafting.branch_above is not None:
            check_trees(reader)
        return EagleProposer(context.target, reader, drafting)

    def _tokens(self, context: ProposerContext, folder: Path, drafting: Drafting) -> _Tokens:
        """How the model is loaded beside the target's vocabulary, and what proposes with it; raises as `open`."""
        from draftrank.building.surgery.vocabulary_trimming import known_tokens
        from draftrank.engine.proposers.other_vocabulary import StringMatchProposer, TokenIntersectionProposer
        from draftrank.models.loading import load_tokenizer, read_config
        from draftrank.models.token_bytes import TokenBytes
        from draftrank.models.translation import Translation
        from draftrank.models.vocabulary import SharedTokens, check_vocabularies

        rows = context.target.vocabulary_size
        if self.vocabulary == "same":
            check_vocabularies(context.target_folder, folder)
            return _Tokens(lambda draft: ModelProposer(draft, drafting), rows)
        target, own = (TokenBytes(load_tokenizer(path)) for path in (context.target_folder, folder))
        translation = Translation(target, own)
        if self.vocabulary == "string_match":
            return _Tokens(lambda draft: StringMatchProposer(draft, translation, drafting))
        own_rows = int(read_config(folder).get_text_config().vocab_size)
        shared = SharedTokens.of(target, own).within(rows, own_rows, known_tokens(folder))
        return _Tokens(
            lambda draft: TokenIntersectionProposer(draft, translation, drafting, shared, rows),
            known=sorted(shared.to_draft.values()),
        )


@dataclass(frozen=True, slots=True)
class _Tokens:
    """How a draft's vocabulary stands to the target's."""

    proposer: Callable[[Runtime], ModelProposer | OtherVocabularyProposer]
    """Makes the proposer of the draft's runtime."""
    rows: int | None = None
    """How many rows the draft is loaded with; None: its own."""
    known: Sequence[int] | None = None
    """The only tokens that its head answers for, by its own ids; None: all."""


_IN_WORDS: dict[Vocabulary, str] = {
    "same": "",
    "token_intersection": "; then propose only tokens that both vocabularies have",
    "string_match": "; then turn its text into the target's tokens",
}


class ModelDraft(ModelBasedDraft):
    """A smaller language model, over the target's vocabulary or one of its own."""

    kind: Literal["draft_model"]

    @model_validator(mode="after")
    def _no_head(self) -> Self:
        if self.steps[0].kind == "eagle_head":
            raise ValueError(
                "eagle_head makes an EAGLE-3 head (fix: write `kind: eagle`, which begins with it, and remove the step)"
            )
        return self


class EagleDraft(HeadFields, ModelBasedDraft):
    """An EAGLE-3 head: one layer that reads the target's hidden states."""

    kind: Literal["eagle"]
    steps: Annotated[tuple[Step, ...], Field(max_length=32)] = ()
    """Steps applied to the head, in order."""

    @property
    def build_steps(self) -> tuple[StepBase, ...]:
        declared = self.model_dump(include=set(HeadFields.model_fields))
        return (EagleHead.model_validate({"kind": "eagle_head", **declared}), *self.steps)


class ModelProposer(SteppingModel):
    """Decodes up to k tokens with the draft, one forward each.

    Its cache lags behind the context by the tokens it has not seen: one after a rejection, two when
    everything was accepted, because it never read its own last proposal; more where others proposed since.
    """

    def __init__(self, draft: Runtime, drafting: Drafting = PLAIN) -> None:
        super().__init__(draft, drafting)
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
