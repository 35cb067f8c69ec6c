"""Train the draft towards the target on text that the target itself wrote.

The draft learns the target's next-token distribution (word-level knowledge distillation, Hinton et
al. 2015; for speculative drafts: DistillSpec, Zhou et al. 2023, arXiv:2310.08461). The text is
sampled from the target, so no data licence is in the way and no test prompt is copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from draftrank.catalog.self_generated import CorpusText
from draftrank.catalog.step import Phase, StepBase

if TYPE_CHECKING:
    from collections.abc import Sequence

    from draftrank.building.working_draft import BuildContext, WorkingDraft
MIN_HELD_OUT = 2
"""Sequences of the training text that are kept aside at least, on which agreement is measured."""


class Distill(StepBase):
    """Trains the draft towards the target's next-token distribution. Agreement grows with the number of
    tokens seen."""

    technique: ClassVar[str] = "distillation"
    phase: ClassVar[Phase] = "training"
    paper: ClassVar[str] = "Hinton et al. (arXiv:1503.02531), DistillSpec (arXiv:2310.08461)"
    cost: ClassVar[str] = "minutes to hours; the draft costs no more, and agrees more with every token seen"
    trains: ClassVar[bool] = True
    code_version: ClassVar[int] = 2

    kind: Literal["distill"]
    objective: Literal["kl", "reverse_kl", "total_variation", "cross_entropy"] = "kl"
    """Training loss. `kl`: KL divergence from the target's distribution to the draft's; `reverse_kl`: the
    reverse; `total_variation`: the probability that a sampled token is rejected; `cross_entropy`: the
    corpus's tokens."""
    data: CorpusText
    """Training text: the name of a corpus, or a text in place."""
    teacher: Literal["target", "origin"] = "target"
    """Whose distribution the draft learns. `origin`: that of the `pretrained` model which it began with, for a draft
    with a vocabulary of its own; the text is the target's, in the draft's tokens."""
    passes: Annotated[int, Field(ge=1, le=1_000)] = 1
    """Number of passes over the corpus."""
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 5e-4
    """Peak learning rate; linear warm-up, then cosine decay to a tenth."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """What changes the weights. `muon` (Jordan et al. 2024, kellerjordan.github.io/posts/muon) orthogonalizes the changes of
    matrices between hidden states, scaled to the size of AdamW's, and leaves everything else to AdamW."""
    warmup_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.05
    """Share of the updates in the warm-up."""
    batch_sequences: Annotated[int, Field(ge=1, le=4_096)] = 8
    """Sequences per update."""
    weight_decay: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01
    """AdamW's weight decay of matrices."""
    gradient_clip: Annotated[float, Field(gt=0.0, le=1_000.0)] = 1.0
    """Maximum norm of the gradient."""
    train_head: bool = False
    """Whether to train the embedding and the head too; otherwise they stay the target's."""
    micro_batch_sequences: Annotated[int, Field(ge=1, le=4_096)] | None = None
    """Sequences per forward and backward; gradients accumulate to those of the whole update. Absent: all
    sequences at once."""
    on_policy_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of the updates whose answers the draft writes itself, as it does when it proposes."""
    hidden_weight: Annotated[float, Field(ge=0.0, le=1_000.0)] = 0.0
    """Weight of the squared distance between hidden states of the draft's layers and of the target's layers
    they came from, relative to the size of the latter. Needs `drop_layers` before it and an unchanged
    hidden size."""
    cache_target_states: bool = False
    """Whether to run the target over the corpus once and keep its final hidden states on disk, for all passes
    and recipes. Saves most of the target's time from the second pass on."""
    ttt_steps: Annotated[int, Field(ge=1, le=8)] = 1
    """Training-time test of an EAGLE-3 head (arXiv:2503.01840): number of consecutive tokens it is trained to
    predict. From the second on it reads its own hidden state, as it does when it proposes."""
    round_weights: bool = False
    """Whether to round the trained weights to bf16: bf16 inference then computes the same, and `draftrank
    keep` stores half the bytes."""
    evaluations: Annotated[int, Field(ge=0, le=1_000)] = 0
    """Number of evaluations of the agreement on held-out sequences during training, besides those before and
    after."""
    stop_after: Annotated[int, Field(ge=1, le=1_000)] | None = None
    """Ends training after this many evaluations in a row without a better agreement; absent: trains to the
    end."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the order of sequences."""

    @model_validator(mode="after")
    def _coherent(self) -> Distill:
        if self.stop_after is not None and self.evaluations < self.stop_after:
            raise ValueError(
                f"stop_after can never be reached by {self.evaluations} evaluations (fix: raise evaluations)"
            )
        if self.cache_target_states and self.on_policy_share > 0:
            raise ValueError(
                "the target's states of text that the draft will write cannot be kept (fix: remove "
                "cache_target_states or on_policy_share)"
            )
        rows = -(-self.data.tokens // self.data.sequence_tokens)
        if rows <= MIN_HELD_OUT:
            raise ValueError(
                f"a text of {rows} sequences is too short to keep {MIN_HELD_OUT} of them aside (fix: raise data.tokens, or lower "
                "data.sequence_tokens)"
            )
        if self.cache_target_states and self.hidden_weight > 0:
            raise ValueError(
                "only final states are kept, not those of every layer (fix: remove cache_target_states or "
                "hidden_weight)"
            )
        return self

    def sentence(self) -> str:
        whose = "the target's" if self.teacher == "target" else "the ready-made model's"
        goal = {
            "kl": f"{whose} distribution (KL)",
            "reverse_kl": f"{whose} distribution (reverse KL)",
            "total_variation": f"{whose} distribution (total variation)",
            "cross_entropy": "the target's own tokens",
        }[self.objective]
        times = "1 pass" if self.passes == 1 else f"{self.passes} passes"
        return f"distil towards {goal} on {self.data.tokens:,} tokens that the target generated, {times}"

    def fault(self, before: Sequence[StepBase]) -> str | None:
        kinds = {step.kind for step in before}
        if "eagle_head" in kinds:
            if self.on_policy_share or self.hidden_weight:
                return (
                    "an EAGLE-3 head cannot write text alone, and its layers are not the target's (fix: remove "
                    "on_policy_share and hidden_weight)"
                )
            if "prune_hidden" in kinds:
                return "an EAGLE-3 head needs the target's hidden size while it is trained (fix: remove prune_hidden)"
            return None
        if self.ttt_steps > 1:
            return "ttt_steps is for EAGLE-3 heads (fix: write `kind: eagle`, or remove ttt_steps)"
        return self._hidden_fault(kinds) if self.hidden_weight else None

    def _hidden_fault(self, before: set[str]) -> str | None:
        """Why layers of the draft, which these kinds of steps have made, cannot be compared with those of the teacher."""
        if "pretrained" in before and self.teacher == "target":
            return (
                "hidden_weight compares the draft's layers with the target's that they came from, and a ready-made model's came "
                "from none (fix: remove hidden_weight)"
            )
        if "drop_layers" not in before or "merge_layers" in before:
            return (
                "hidden_weight needs to know which of the target's layers the draft's come from (fix: put drop_layers before "
                "distill and nothing else that changes the depth)"
            )
        if "prune_hidden" in before:
            return "hidden_weight needs the target's hidden size (fix: remove prune_hidden, or hidden_weight)"
        return None

    def check(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.errors import BuildError
        from draftrank.models.loading import read_config

        super().check(draft, context)
        rows = int(draft.model.config.get_text_config().vocab_size)
        wanted = int(read_config(context.model_folder).get_text_config().vocab_size)
        if rows != wanted:
            raise BuildError(
                f"the draft's model has {rows:,} rows of the vocabulary and the target's {wanted:,}, so their distributions cannot "
                "be compared: use a ready-made model with as many rows, or leave distill out"
            )

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.training.distillation import distill

        draft.notes["distillation"] = distill(self, draft, context)
