"""From a recipe's id to folders that other programs open."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from draftrank.board.model_card import model_card
from draftrank.board.ranking import build_boards
from draftrank.catalog.backend import Auto, Device
from draftrank.catalog.programs import NAMES, PROGRAMS, Program, ProgramUse, why_no_form
from draftrank.catalog.recipe import Recipe
from draftrank.catalog.workspace import Workspace
from draftrank.errors import BuildError, DraftrankError, InvalidInputError
from draftrank.jobs.session import build
from draftrank.measure.parity import Parity
from draftrank.measure.records import SessionResult
from draftrank.measure.sessions.plan import DraftArm
from draftrank.progress import SILENT, Progress


@dataclass(frozen=True, slots=True)
class Exported:
    """The form for one program."""

    program: Program
    folder: Path
    files: tuple[str, ...]
    """Their names in it."""
    use: ProgramUse
    """How to run it."""


@dataclass(frozen=True, slots=True)
class Exports:
    """What was written, and what was not."""

    forms: tuple[Exported, ...]
    without: dict[Program, str]
    """Why there is no form for a program."""


def export(
    workspace: Workspace,
    target: str,
    draft: str,
    to: Path,
    results: Sequence[SessionResult],
    parities: Sequence[Parity],
    *,
    programs: Sequence[Program] = ("transformers",),
    device: Device | Auto = "cpu",
    progress: Progress = SILENT,
) -> Exports:
    """Builds a draft, or finds it in the cache, and writes it for other programs, each form with its card.

    Args:
        to: a new or empty folder. The form of one program lies in it, those of several in folders named after them.
        results: what is known of its speed.
        parities: what is known of it in other programs.
        programs: for which; none: for all that have a form, and the others are told.

    Raises:
        InvalidInputError: it has no weights of its own, or the folder holds something already.
        BuildError: it cannot be built, or has no form for a program that was named.
        MissingDataError: the target cannot be had.
    """
    from draftrank.building.export.folder import require_empty

    recipe = workspace.recipe(target, draft)
    if not recipe.draft.has_weights:
        raise InvalidInputError.single(
            f"{draft} has no weights to export: {recipe.draft.sentence()}",
            field="draft",
            fix="use it by its settings, e.g. `prompt_lookup_num_tokens` of transformers for n-grams",
        )
    without = why_no_form(recipe.draft.traits)
    for program in programs:
        if program in without:
            raise BuildError(f"{draft} has no form for {NAMES[program]}: {without[program]}")
    wanted = programs or [program for program in PROGRAMS if program not in without]
    require_empty(to)
    (arm,) = build(workspace, target, (draft,), device=device, progress=progress)
    if arm.build is None or arm.folder is None:
        raise BuildError(arm.failure or f"{draft} could not be built")
    forms = []
    for program in wanted:
        place = to / program if len(wanted) > 1 or not programs else to
        place.mkdir(exist_ok=True)
        try:
            with progress.stage(f"write it for {NAMES[program]}"):
                forms.append(_write(workspace, recipe, program, place, arm, results, parities, progress))
        except DraftrankError as error:
            if programs:
                raise
            shutil.rmtree(place)
            without[program] = str(error)
    return Exports(tuple(forms), without)


def _write(
    workspace: Workspace,
    recipe: Recipe,
    program: Program,
    to: Path,
    arm: DraftArm,
    results: Sequence[SessionResult],
    parities: Sequence[Parity],
    progress: Progress,
) -> Exported:
    from draftrank.building.export.folder import write_form
    from draftrank.models.cache import FACTS
    from draftrank.models.target_folder import ensure_target, gguf_file

    assert arm.build is not None
    assert arm.folder is not None
    target = workspace.target(recipe.target)
    fetch = workspace.fetch_context(progress)
    files = write_form(
        program,
        arm.folder,
        ensure_target(target, fetch).path,
        lambda: gguf_file(target, fetch),
        recipe.id,
        to,
    )
    facts = json.loads((arm.folder / FACTS).read_text("utf-8"))
    model = getattr(target.source, "repository", None) or f"PATH_OF_{target.id}"
    uses = recipe.draft.uses(model, str(to), recipe.speculate.num_speculative_tokens)
    (use,) = (use for use in uses if use.program == NAMES[program])
    lineage = {
        "built": f"{facts['created_at']} on {facts['device']} in {arm.build.build_s:.0f} s with "
        + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
    }
    card = model_card(arm.build, target, build_boards(results), parities, (use,), lineage)
    (to / "README.md").write_text(card, "utf-8")
    return Exported(program, to, (*sorted(path.name for path in files), "README.md"), use)
