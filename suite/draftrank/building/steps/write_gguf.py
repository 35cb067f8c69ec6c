"""Turn the draft into a GGUF file, which llama.cpp runs.

llama.cpp decodes small models on CPU faster than torch does, and its kernels read quantized weights as they are. The
draft may serve any target: proposals cross from one runtime to the other as token ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from draftrank.catalog.step import Phase, StepBase, Trait
from draftrank.models.gguf_format import GGUF_FILE, GgufWeights

if TYPE_CHECKING:
    from draftrank.building.working_draft import BuildContext, WorkingDraft


class WriteGguf(StepBase):
    """Writes the draft as a GGUF file that llama.cpp runs; the target must come as GGUF too."""

    technique: ClassVar[str] = "GGUF"
    phase: ClassVar[Phase] = "quantization"
    adds: ClassVar[Trait | None] = "gguf"
    paper: ClassVar[str] = "none; the file format and the kernels of llama.cpp"
    cost: ClassVar[str] = "seconds; on CPU a forward of llama.cpp in place of torch's"
    architectures: ClassVar[str] = "Llama and Gemma 3: others are not written yet"
    code_version: ClassVar[int] = 2

    kind: Literal["write_gguf"]
    weights: GgufWeights = "q8_0"
    """Type of the matrices, in llama.cpp's names; norms stay f32, and matrices whose rows are no multiple of
    32 become f16."""

    def sentence(self) -> str:
        return f"write it as GGUF in {self.weights.upper()}, for llama.cpp"

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.export.gguf import write_gguf
        from draftrank.errors import BuildError
        from draftrank.models.forms import GgufForm, TiedLayersForm
        from draftrank.models.target_folder import gguf_file

        special = [form.form for form in draft.forms if not isinstance(form, TiedLayersForm)]
        if special:
            raise BuildError(f"GGUF cannot express {', '.join(dict.fromkeys(special))} parts")
        source = gguf_file(context.target, context.fetch)
        draft.packed_parameters = draft.count_parameters()
        draft.gguf = context.scratch / GGUF_FILE
        write_gguf(draft.model, source, "draft", draft.gguf, self.weights)
        draft.forms = [GgufForm()]
