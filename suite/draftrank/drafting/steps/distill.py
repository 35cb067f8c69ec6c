"""Train the draft towards the target on text that the target itself wrote.

The draft learns the target's next-token distribution (word-level knowledge distillation, Hinton et
al. 2015; for speculative drafts: DistillSpec, Zhou et al. 2023, arXiv:2310.08461). The text is
sampled from the target, so no data licence is in the way and no test prompt leaks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from draftrank.catalog.base import Declared
from draftrank.catalog.step import StepBase

if TYPE_CHECKING:
    from draftrank.drafting.working_draft import BuildContext, WorkingDraft


class SelfGenerated(Declared):
    """Conversations the target makes up: it writes the user's turn from its opening, then answers."""

    kind: Literal["self_generated"]
    tokens: Annotated[int, Field(ge=1_000, le=2_000_000_000)]
    """Size of the corpus in tokens."""
    sequence_tokens: Annotated[int, Field(ge=16, le=8_192)] = 256
    """Length of each conversation in tokens."""
    prompt_temperature: Annotated[float, Field(gt=0.0, le=5.0)] = 1.0
    """Temperature while the user's turn is written."""
    answer_temperature: Annotated[float, Field(ge=0.0, le=5.0)] = 0.0
    """Temperature while it is answered; 0 matches greedy decoding."""
    batch_sequences: Annotated[int, Field(ge=1, le=4_096)] = 64
    """Conversations generated together."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the sampling."""


class Distill(StepBase):
    """Heals a cut draft; most of its quality comes from the number of tokens seen."""

    technique: ClassVar[str] = "distillation"
    trains: ClassVar[bool] = True

    kind: Literal["distill"]
    objective: Literal["kl", "cross_entropy"] = "kl"
    """`kl`: forward KL to the target's distribution; `cross_entropy`: the corpus's own tokens."""
    data: SelfGenerated
    """What it is trained on."""
    passes: Annotated[int, Field(ge=1, le=1_000)] = 1
    """How often the corpus is seen."""
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 5e-4
    """Peak of the schedule: linear warm-up, then cosine to a tenth (AdamW)."""
    warmup_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.05
    """Share of the updates that warm up."""
    batch_sequences: Annotated[int, Field(ge=1, le=4_096)] = 8
    """Sequences per update."""
    weight_decay: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01
    """AdamW's decay of matrices."""
    gradient_clip: Annotated[float, Field(gt=0.0, le=1_000.0)] = 1.0
    """Largest norm of the gradient."""
    train_head: bool = False
    """Whether the embedding and the head are trained too, or stay the target's."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the order of sequences."""

    def sentence(self) -> str:
        """See `StepBase.sentence`."""
        goal = "the target's distribution (KL)" if self.objective == "kl" else "the target's own tokens"
        times = "once" if self.passes == 1 else f"{self.passes} times"
        return f"distil towards {goal} on {self.data.tokens:,} tokens the target wrote, seen {times}"

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
        """See `StepBase.apply`."""
        from draftrank.drafting.distillation import distill

        draft.notes["distillation"] = distill(self, draft, context)
