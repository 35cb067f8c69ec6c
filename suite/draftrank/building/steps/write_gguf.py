"""Turn the draft into a GGUF file, which llama.cpp runs.

llama.cpp decodes small models on CPU faster than torch does, and its kernels read quantized weights as they are. The
draft may serve any target: proposals cross from one runtime to the other as token ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from draftrank.catalog.step import Phase, StepBase, Trait
from draftrank.models.gguf_format import GGUF_FILE, GgufWeights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from draftrank.building.working_draft import BuildContext, WorkingDraft

_NOT_EXPRESSED = ("factors", "trimmed head", "EAGLE-3 head")


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

    def fault(self, before: Sequence[StepBase]) -> str | None:
        changed = [step.trait for step in before if step.trait in _NOT_EXPRESSED]
        if not changed:
            return None
        return f"GGUF cannot express {', '.join(dict.fromkeys(changed))} (fix: remove the step that makes it)"

    def check(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.models.target_folder import gguf_file

        gguf_file(context.target, context.fetch)

    def check_shape(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.export.gguf import require_written
        from draftrank.models.target_folder import gguf_file

        require_written(draft.model, gguf_file(context.target, context.fetch))

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.export.gguf import write_gguf
        from draftrank.models.forms import GgufForm
        from draftrank.models.target_folder import gguf_file

        source = gguf_file(context.target, context.fetch)
        draft.packed_parameters = draft.count_parameters()
        draft.gguf = context.scratch / GGUF_FILE
        write_gguf(draft.model, source, "draft", draft.gguf, self.weights)
        draft.forms = [GgufForm()]
