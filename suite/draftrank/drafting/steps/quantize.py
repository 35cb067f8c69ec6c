"""Smaller numbers for the weights.

`dynamic_int8` is torch's dynamic quantization of linear layers for CPU: int8 weights per output
channel, activations quantized as they come. The draft's folder keeps ordinary safetensors; the
int8 form is made when the draft is loaded, and only that form is measured. The other schemes are those of
libraries that transformers loads by itself, and their folders hold the quantized weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import StringConstraints

from draftrank.catalog.step import Phase, StepBase

if TYPE_CHECKING:
    from draftrank.drafting.working_draft import BuildContext, WorkingDraft

ModuleEnding = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]{0,99}$")]

_WORDS = {
    "dynamic_int8": "to int8, dynamically",
    "int8_weight_only": "to int8, weights only (torchao)",
    "int8_dynamic": "to int8 with int8 activations (torchao)",
    "int4_weight_only": "to int4, weights only (torchao)",
    "nf4": "to 4-bit normal floats (bitsandbytes)",
    "llm_int8": "to int8 with outliers kept apart (bitsandbytes)",
}


class Quantize(StepBase):
    """Less memory traffic per forward, at some loss of agreement."""

    technique: ClassVar[str] = "quantization"
    phase: ClassVar[Phase] = "precision"
    paper: ClassVar[str] = "LLM.int8 (arXiv:2208.07339), QLoRA's NF4 (arXiv:2305.14314), torchao"
    cost: ClassVar[str] = "seconds; a forward reads a quarter to a half of the bytes, most tokens still agree"

    kind: Literal["quantize"]
    scheme: Literal["dynamic_int8", "int8_weight_only", "int8_dynamic", "int4_weight_only", "nf4", "llm_int8"]
    """`dynamic_int8`: torch dynamic quantization, CPU only. torchao: `int8_weight_only`; `int8_dynamic`, with
    int8 activations; `int4_weight_only`, CUDA only. bitsandbytes: `nf4`; `llm_int8`."""
    keep_precise: tuple[ModuleEnding, ...] = ()
    """Linear layers that stay as they are, by the ends of their names, e.g. `down_proj`, `lm_head`."""

    def sentence(self) -> str:
        """See `StepBase.sentence`."""
        but = f", but for {', '.join(self.keep_precise)}" if self.keep_precise else ""
        return f"quantize its linear layers {_WORDS[self.scheme]}{but}"

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
        """See `StepBase.apply`."""
        from draftrank.drafting.forms import DynamicInt8Form
        from draftrank.drafting.library_quantization import (
            quantize_folder,
            require_fitting,
            require_library,
        )
        from draftrank.errors import BuildError

        if self.scheme == "dynamic_int8":
            draft.forms.append(DynamicInt8Form(keep_precise=self.keep_precise))
            return
        require_library(self.scheme, context.device)
        require_fitting(draft, self.scheme)
        if draft.forms:
            changed = ", ".join(dict.fromkeys(form.form for form in draft.forms))
            raise BuildError(
                f"{self.scheme} needs an ordinary model, and this one has {changed} parts, which only "
                "dynamic_int8 can follow"
            )
        plain = context.scratch / "plain"
        draft.save(plain)
        draft.model = quantize_folder(plain, self.scheme, self.keep_precise, context.device)
