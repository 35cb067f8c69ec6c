"""Set most weights of the decoder layers to zero.

Dense kernels multiply zeros like any number, so on CPU a sparse draft is as slow as before; GPUs have
kernels for the 2:4 pattern, which a `2:4` draft in half precision uses (Mishra et al. 2021, arXiv:2104.08378).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints, model_validator

from draftrank.catalog.step import Phase, StepBase

if TYPE_CHECKING:
    from draftrank.building.working_draft import BuildContext, WorkingDraft


class Sparsify(StepBase):
    """Sets weights to zero. Saves no time on CPUs; useful before distillation, or with 2:4 kernels on a GPU."""

    technique: ClassVar[str] = "sparsity"
    phase: ClassVar[Phase] = "sparsity"
    paper: ClassVar[str] = "Wanda (arXiv:2306.11695), SparseGPT (arXiv:2301.00774)"
    cost: ClassVar[str] = (
        "seconds to minutes; saves nothing on CPU, agreement falls by a third to half at 50 %"
    )

    kind: Literal["sparsify"]
    method: Literal["magnitude", "wanda", "sparsegpt"]
    """Criterion of the pruned weights: the smallest (`magnitude`), the smallest products with the norm of
    their inputs (`wanda`), or those whose removal the remaining weights compensate best, which are then
    updated (`sparsegpt`)."""
    sparsity: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Share of the weights that become zero."""
    pattern: Annotated[str, StringConstraints(pattern=r"^[1-9]\d?:[1-9]\d?$")] | None = None
    """In place of `sparsity`: `n:m` keeps n of every m consecutive weights of a row, e.g. `2:4`."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Sparsify:
        if (self.sparsity is None) == (self.pattern is None):
            raise ValueError("exactly one of sparsity and pattern must be given (fix: write `sparsity: 0.5`)")
        if self.pattern is not None:
            stay, group = self.counts
            if stay >= group:
                raise ValueError(
                    f"{self.pattern} leaves everything (fix: write fewer than {group} of {group})"
                )
        return self

    @property
    def counts(self) -> tuple[int, int]:
        """The two numbers of the pattern."""
        assert self.pattern is not None
        stay, _, group = self.pattern.partition(":")
        return int(stay), int(group)

    def sentence(self) -> str:
        if self.sparsity is not None:
            share = f"{self.sparsity:.0%} of the"
        else:
            stay, group = self.counts
            share = f"all but {stay} of every {group}"
        name = {"magnitude": "magnitude", "wanda": "Wanda", "sparsegpt": "SparseGPT"}[self.method]
        return f"set {share} weights to zero by {name}"

    def check_shape(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.surgery.sparsity import require_columns

        require_columns(draft, self.counts if self.pattern else None)

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.surgery.sparsity import sparsify
        from draftrank.building.text.corpus import calibration_tokens
        from draftrank.models.forms import SemiStructuredForm

        text = None if self.method == "magnitude" else calibration_tokens(context)
        pattern = self.counts if self.pattern else None
        share = sparsify(draft, self.method, self.sparsity or 0.0, pattern, text, context.progress)
        draft.notes["zeros"] = round(share, 6)
        if self.pattern == "2:4":
            draft.forms.append(
                SemiStructuredForm(modules=tuple(draft.architecture.linear_layers(draft.model)))
            )
