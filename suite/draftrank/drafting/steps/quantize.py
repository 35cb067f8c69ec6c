"""Smaller numbers for the weights.

`dynamic_int8` is torch's dynamic quantization of linear layers for CPU: int8 weights per output
channel, activations quantized as they come. The draft's folder keeps ordinary safetensors; the
int8 form is made when the draft is loaded, and only that form is measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import StringConstraints

from draftrank.catalog.step import Phase, StepBase

if TYPE_CHECKING:
    from draftrank.drafting.working_draft import BuildContext, WorkingDraft

ModuleEnding = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]{0,99}$")]


class Quantize(StepBase):
    """Less memory traffic per forward, at some loss of agreement."""

    technique: ClassVar[str] = "quantization"
    phase: ClassVar[Phase] = "precision"
    paper: ClassVar[str] = "torch dynamic quantization (LLM.int8's row-wise form, arXiv:2208.07339)"
    cost: ClassVar[str] = "seconds; a forward reads a quarter of the bytes, most tokens still agree"

    kind: Literal["quantize"]
    scheme: Literal["dynamic_int8"]
    """`dynamic_int8`: torch dynamic quantization, CPU only."""
    keep_precise: tuple[ModuleEnding, ...] = ()
    """Linear layers that stay as they are, by the ends of their names, e.g. `down_proj`, `lm_head`."""

    def sentence(self) -> str:
        """See `StepBase.sentence`."""
        but = f", but for {', '.join(self.keep_precise)}" if self.keep_precise else ""
        return f"quantize its linear layers to int8, dynamically{but}"

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
        """See `StepBase.apply`."""
        from draftrank.drafting.forms import DynamicInt8Form

        draft.forms.append(DynamicInt8Form(keep_precise=self.keep_precise))
