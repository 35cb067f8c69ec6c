"""Smaller numbers for the weights.

`dynamic_int8` is torch's dynamic quantization of linear layers for CPU: int8 weights per output
channel, activations quantized as they come. The draft's folder keeps ordinary safetensors; the
int8 form is made when the draft is loaded, and only that form is measured. The other schemes are those of
libraries that transformers loads by itself, and their folders hold the quantized weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints, model_validator

from draftrank.catalog.step import Phase, StepBase, Trait

if TYPE_CHECKING:
    from collections.abc import Sequence

    from draftrank.building.working_draft import BuildContext, WorkingDraft

ModuleEnding = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]{0,99}$")]

_WORDS = {
    "dynamic_int8": "to int8, dynamically",
    "int8_weight_only": "to int8, weights only (torchao)",
    "int8_dynamic": "to int8 with int8 activations (torchao)",
    "int4_weight_only": "to int4, weights only (torchao)",
    "nf4": "to 4-bit normal floats (bitsandbytes)",
    "llm_int8": "to int8 with outliers kept apart (bitsandbytes)",
}
_NOT_ORDINARY = ("factors", "trimmed head", "EAGLE-3 head", "shared layers")
"""What only `dynamic_int8` can follow."""


class Quantize(StepBase):
    """Less memory traffic per forward, at some loss of agreement."""

    technique: ClassVar[str] = "quantization"
    phase: ClassVar[Phase] = "quantization"
    paper: ClassVar[str] = (
        "GPTQ (arXiv:2210.17323), LLM.int8 (arXiv:2208.07339), QLoRA's NF4 (arXiv:2305.14314), torchao"
    )
    cost: ClassVar[str] = (
        "seconds, GPTQ minutes; a forward reads a quarter to a half of the bytes, most tokens still agree"
    )

    kind: Literal["quantize"]
    scheme: Literal[
        "dynamic_int8", "int8_weight_only", "int8_dynamic", "int4_weight_only", "nf4", "llm_int8", "gptq"
    ]
    """Quantization method. torch: `dynamic_int8` (CPU only). torchao: `int8_weight_only`; `int8_dynamic` with
    int8 activations; `int4_weight_only` (CUDA only). bitsandbytes: `nf4`; `llm_int8`. GPTQModel: `gptq`,
    which reads the calibration text."""
    bits: Literal[2, 3, 4, 8] | None = None
    """Bits per weight, for `gptq`; absent: 4."""
    group_size: Annotated[int, Field(ge=16, le=1_024)] | None = None
    """Weights of a row per scale, for `gptq`; rows must be a multiple of it. Absent: 64."""
    keep_precise: tuple[ModuleEnding, ...] = ()
    """Linear layers to leave unquantized, by the ends of their names, e.g. `down_proj`, `lm_head`."""

    @model_validator(mode="after")
    def _only_gptq(self) -> Quantize:
        for name in ("bits", "group_size"):
            if getattr(self, name) is not None and self.scheme != "gptq":
                raise ValueError(f"{name} is fixed for {self.scheme} (fix: remove it, or use gptq)")
        return self

    @property
    def trait(self) -> Trait | None:
        return "int8 at load" if self.scheme == "dynamic_int8" else "packed"

    @property
    def touches_layers(self) -> bool:
        return self.scheme == "gptq"

    def sentence(self) -> str:
        gptq = f"to {self.bits or 4} bits by GPTQ, {self.group_size or 64} weights per scale"
        how = _WORDS.get(self.scheme, gptq)
        but = f", except {', '.join(self.keep_precise)}" if self.keep_precise else ""
        return f"quantize its linear layers {how}{but}"

    def fault(self, before: Sequence[StepBase]) -> str | None:
        if self.scheme == "dynamic_int8":
            return None
        changed = [step.trait for step in before if step.trait in _NOT_ORDINARY]
        if not changed:
            return None
        return (
            f"{self.scheme} needs an ordinary model, and this one has {', '.join(dict.fromkeys(changed))} (fix: write "
            "`scheme: dynamic_int8`)"
        )

    def check(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.surgery.library_quantization import require_library
        from draftrank.models.forms import int8_engine

        super().check(draft, context)
        if self.scheme != "dynamic_int8":
            require_library(self.scheme, context.device)
        elif context.device == "cpu":
            int8_engine()

    def check_shape(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.surgery.library_quantization import GPTQ_GROUP, require_fitting

        if self.scheme != "dynamic_int8":
            require_fitting(draft, self.scheme, self.group_size or GPTQ_GROUP, self.keep_precise)

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.surgery.library_quantization import GPTQ_GROUP, Settings, quantize_folder
        from draftrank.building.text.corpus import calibration_tokens
        from draftrank.models.forms import DynamicInt8Form

        if self.scheme == "dynamic_int8":
            draft.forms.append(DynamicInt8Form(keep_precise=self.keep_precise))
            return
        draft.forms = []  # zeros in some places, of which their kernels know nothing
        draft.packed_parameters = draft.count_parameters()
        plain = context.scratch / "plain"
        draft.save(plain)
        settings = Settings(
            keep_precise=self.keep_precise,
            bits=self.bits or 4,
            group_size=self.group_size or GPTQ_GROUP,
            parts=draft.architecture.matrices_of_a_layer() if self.scheme == "gptq" else (),
            layers=draft.architecture.layers_name if self.scheme == "gptq" else None,
            text=calibration_tokens(context) if self.scheme == "gptq" else None,
        )
        draft.model = quantize_folder(plain, self.scheme, context.device, settings)
