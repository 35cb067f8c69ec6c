"""Takes a built draft out of the cache, in the forms that other programs read."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from draftrank.drafting.forms import DynamicInt8Form, LowRankForm, TiedLayersForm, TrimmedHeadForm
from draftrank.drafting.loading import is_quantized, load_model, read_forms
from draftrank.errors import BuildError, InvalidInputError

_REPLACED = {
    LowRankForm: "its matrices are products of thin ones",
    TrimmedHeadForm: "its head knows some of the tokens only",
}


@dataclass(frozen=True, slots=True)
class Abilities:
    """Which programs can run a draft; for those that cannot, why."""

    transformers: str | None
    """None: `AutoModelForCausalLM.from_pretrained` opens the very draft that was measured."""
    vllm: str | None
    """None: vLLM and SGLang open it as a draft model."""
    gguf: str | None
    """None: it can be written as GGUF."""


def abilities(folder: Path) -> Abilities:
    """What can be done with a built draft's folder."""
    forms = read_forms(folder)
    for form in forms:
        reason = next((why for kind, why in _REPLACED.items() if isinstance(form, kind)), None)
        if reason is not None:
            opened = f"{reason}, which the architecture's own code cannot express"
            return Abilities(f"{opened}: open it through draftrank", opened, opened)
    if is_quantized(folder):
        packed = "its weights are packed for another library"
        return Abilities(None, f"{packed}: whether it opens depends on the version", packed)
    if any(isinstance(form, DynamicInt8Form) for form in forms):
        at_load = "it is turned into int8 when draftrank loads it"
        plain = f"{at_load}; other programs open its plain weights, which is a slower draft"
        return Abilities(f"{plain}: open it through draftrank", plain, None)
    tied = any(isinstance(form, TiedLayersForm) for form in forms)
    note = "layers that share weights are written out, so that it takes more memory than was measured"
    return Abilities(None, note if tied else None, None)


def copy_folder(folder: Path, to: Path) -> list[Path]:
    """Copies a built draft's files into a new folder; returns them.

    Raises:
        InvalidInputError: the folder holds something already.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise InvalidInputError.single(
            f"{to} is not empty", field="--to", fix="name a folder that does not exist yet, or empty it"
        )
    to.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copy2(path, to / path.name)) for path in sorted(folder.iterdir()) if path.is_file()]


def export_gguf(folder: Path, target_file: Path, name: str, to: Path) -> Path:
    """Writes a built draft as GGUF beside its other files; returns the file.

    Raises:
        BuildError: it cannot be written as GGUF; the message says why.
    """
    from draftrank.drafting.gguf_export import write_gguf

    reason = abilities(folder).gguf
    if reason is not None:
        raise BuildError(f"{name} cannot be written as GGUF: {reason}")
    final = to / f"{name}.gguf"
    write_gguf(load_model(folder, "fp32", "cpu", as_saved=True), target_file, name, final)
    return final
