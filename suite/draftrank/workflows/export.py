"""From a recipe's id to a folder that other programs open."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from draftrank.board.model_card import model_card
from draftrank.board.ranking import build_boards
from draftrank.catalog.backend import Auto, Device
from draftrank.catalog.programs import ProgramUse
from draftrank.catalog.workspace import Workspace
from draftrank.errors import BuildError, InvalidInputError
from draftrank.jobs.session import build
from draftrank.measure.records import SessionResult
from draftrank.progress import Progress, SilentProgress


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    folder: Path
    files: tuple[str, ...]
    uses: tuple[ProgramUse, ...]
    """How to run it, or why a program cannot."""


def export(
    workspace: Workspace,
    target: str,
    draft: str,
    to: Path,
    results: Sequence[SessionResult],
    *,
    gguf: bool = False,
    device: Device | Auto = "cpu",
    progress: Progress | None = None,
) -> Exported:
    """Builds a draft, or finds it in the cache, and writes it with its card.

    Args:
        workspace: where the declarations lie.
        target: the target's id.
        draft: the draft's id.
        to: a new or empty folder.
        results: what is known of its speed.
        gguf: whether to write a GGUF file too.
        device: where to build it.
        progress: told how far it is.

    Raises:
        InvalidInputError: it has no weights of its own, or the folder holds something already.
        BuildError: it cannot be built, or not be written as GGUF.
        MissingDataError: the target cannot be had.
    """
    from draftrank.building.export.folder import abilities, copy_folder, export_gguf
    from draftrank.catalog.programs import uses_of_model
    from draftrank.models.cache import FACTS

    progress = progress or SilentProgress()
    declared = workspace.target(target)
    recipe = workspace.recipe(target, draft)
    if not recipe.draft.has_weights:
        raise InvalidInputError.single(
            f"{draft} has no weights to export: {recipe.draft.sentence()}",
            field="draft",
            fix="use it by its settings, e.g. `prompt_lookup_num_tokens` of transformers for n-grams",
        )
    (arm,) = build(workspace, target, (draft,), device=device, progress=progress)
    if arm.build is None or arm.folder is None:
        raise BuildError(arm.failure or f"{draft} could not be built")
    can = abilities(arm.folder)
    facts = json.loads((arm.folder / FACTS).read_text("utf-8"))
    files = copy_folder(arm.folder, to)
    if gguf and not any(path.suffix == ".gguf" for path in files):
        source = declared.source.fetch(workspace.fetch_context(progress))
        if not source.is_file():
            raise BuildError(
                f"the target {target} is no GGUF file, whose description of the vocabulary a draft's would need: "
                "convert the exported folder with llama.cpp's convert_hf_to_gguf.py"
            )
        files.append(export_gguf(arm.folder, source, draft, to))
    written = next((path.name for path in files if path.suffix == ".gguf"), None)
    model = getattr(declared.source, "repository", None) or f"PATH_OF_{declared.id}"
    ways = uses_of_model(can, model, str(to), recipe.speculate.num_speculative_tokens, gguf_file=written)
    lineage = {
        "built": f"{facts['created_at']} on {facts['device']} in {arm.build.build_s:.0f} s with "
        + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
    }
    card = model_card(arm.build, declared, build_boards(results), ways, lineage)
    (to / "README.md").write_text(card, "utf-8")
    return Exported(to, (*sorted(path.name for path in files), "README.md"), ways)
