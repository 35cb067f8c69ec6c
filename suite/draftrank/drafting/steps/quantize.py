"""Smaller numbers for the weights.

`dynamic_int8` is torch's dynamic quantization of linear layers for CPU: int8 weights per output
channel, activations quantized as they come. The draft's folder keeps ordinary safetensors; the
int8 form is made when the draft is loaded, and only that form is measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from draftrank.catalog.step import StepBase

if TYPE_CHECKING:
    from draftrank.drafting.working_draft import BuildContext, WorkingDraft


class Quantize(StepBase):
    """Less memory traffic per forward, at some loss of agreement."""

    technique: ClassVar[str] = "quantization"

    kind: Literal["quantize"]
    scheme: Literal["dynamic_int8"]
    """`dynamic_int8`: torch dynamic quantization, CPU only."""

    def sentence(self) -> str:
        """See `StepBase.sentence`."""
        return "quantize its linear layers to int8, dynamically"

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
        """See `StepBase.apply`."""
        draft.load_form = self.scheme
