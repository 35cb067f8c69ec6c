"""Takes a built draft out of the cache, in the forms that other programs read."""

from __future__ import annotations

import shutil
from pathlib import Path

from draftrank.catalog.programs import Abilities, abilities_of
from draftrank.catalog.step import Trait
from draftrank.errors import BuildError, InvalidInputError
from draftrank.models.forms import (
    DynamicInt8Form,
    Eagle3Form,
    GgufForm,
    HiddenStatesForm,
    LowRankForm,
    TiedLayersForm,
    TrimmedHeadForm,
)
from draftrank.models.loading import is_quantized, load_model, read_forms

_TRAITS: tuple[tuple[type, Trait], ...] = (
    (LowRankForm, "factors"),
    (TrimmedHeadForm, "trimmed head"),
    (HiddenStatesForm, "target hidden states"),
    (Eagle3Form, "target hidden states"),
    (DynamicInt8Form, "int8 at load"),
    (TiedLayersForm, "shared layers"),
    (GgufForm, "gguf"),
)


def abilities(folder: Path) -> Abilities:
    """What can be done with a built draft's folder."""
    forms = read_forms(folder)
    traits = {trait for kind, trait in _TRAITS if any(isinstance(form, kind) for form in forms)}
    return abilities_of(traits | {"packed"} if is_quantized(folder) else traits)


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
    from draftrank.building.export.gguf import write_gguf

    reason = abilities(folder).gguf
    if reason is not None:
        raise BuildError(f"{name} cannot be written as GGUF: {reason}")
    final = to / f"{name}.gguf"
    write_gguf(load_model(folder, "fp32", "cpu", as_saved=True), target_file, name, final)
    return final
