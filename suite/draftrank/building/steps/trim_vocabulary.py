"""Let the draft's head know the most useful tokens only.

For a shallow draft of a small model the head over the whole vocabulary is most of a forward. Tokens that
the head does not know get probability 0, so they are never proposed, and verification stays exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from draftrank.catalog.self_generated import CorpusText
from draftrank.catalog.step import Phase, StepBase, Trait

if TYPE_CHECKING:
    from collections.abc import Sequence

    from draftrank.building.working_draft import BuildContext, WorkingDraft


class TrimVocabulary(StepBase):
    """Trims the head to the most frequent tokens: cheaper forwards, but the other tokens are never proposed."""

    technique: ClassVar[str] = "vocabulary trimming"
    phase: ClassVar[Phase] = "head"
    adds: ClassVar[Trait | None] = "trimmed head"
    paper: ClassVar[str] = "FR-Spec (arXiv:2502.14856)"
    cost: ClassVar[str] = "the corpus, if it is not there; the head shrinks to the share kept"
    code_version: ClassVar[int] = 2

    kind: Literal["trim_vocabulary"]
    keep_tokens: Annotated[int, Field(ge=1, le=10_000_000)]
    """Number of tokens the head keeps: end-of-output tokens and those that the tokenizer or its chat template
    marks, then the most frequent ones."""
    data: CorpusText | None = None
    """Text in which tokens are counted: the name of a corpus, or a text in place. Absent: the recipe's
    calibration text."""

    def sentence(self) -> str:
        return f"trim the head to the {self.keep_tokens:,} most frequent tokens"

    def fault(self, before: Sequence[StepBase]) -> str | None:
        earlier = next(
            (step.kind for step in before if step.kind in ("trim_vocabulary", "factorize_head")), None
        )
        if earlier is None:
            return None
        return f"{earlier} has changed the head before (fix: put trim_vocabulary before factorize_head, once)"

    def check(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.surgery.vocabulary_trimming import check_trimming
        from draftrank.models.stop_tokens import read_stop_tokens

        check_trimming(draft, self.keep_tokens, read_stop_tokens(context.model_folder, draft.tokenizer))

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.surgery.vocabulary_trimming import trim_vocabulary
        from draftrank.building.text.corpus import self_generated_corpus
        from draftrank.models.stop_tokens import read_stop_tokens

        tokens = self_generated_corpus(self.data or context.calibration, context).tokens
        stop_tokens = read_stop_tokens(context.model_folder, draft.tokenizer)
        draft.notes["kept_tokens_share_of_text"] = trim_vocabulary(
            draft, tokens, self.keep_tokens, stop_tokens
        )
