"""Putting a trained draft beside its recipe."""

from __future__ import annotations

from pathlib import Path

from draftrank.catalog.backend import Asked, Auto, Device
from draftrank.catalog.workspace import Workspace
from draftrank.errors import InvalidInputError
from draftrank.jobs.session import alone
from draftrank.progress import SILENT, Progress


def keep_draft(
    workspace: Workspace,
    target: str,
    draft: str,
    *,
    asked: Device | Auto = "cpu",
    progress: Progress = SILENT,
) -> tuple[Path, Path]:
    """Builds a draft, or finds it in the cache, and writes its weights and hashes of its text beside its recipe.

    Text that is no longer in the cache is written by the target again, unless its hashes are kept already.

    Returns:
        The description and the file of weights.

    Raises:
        InvalidInputError: target or draft are unknown, or the draft has no weights of its own, or another
            vocabulary.
        BuildError: it cannot be built, or its weights or its text take too much room.
        MissingDataError: the target cannot be had.
    """
    workspace.require_own()
    declared, recipe = workspace.target(target), workspace.recipe(target, draft)
    if not recipe.draft.has_weights:
        raise InvalidInputError.single(
            f"the draft {draft!r} has no weights of its own", field="draft", fix="it needs no keeping"
        )
    if recipe.draft.vocabulary_mode != "same":
        raise InvalidInputError.single(
            f"the draft {draft!r} has a vocabulary of its own, and kept weights are completed by the target's",
            field="draft",
            fix="build it from its recipe, or share built drafts (DRAFTRANK_SHARED)",
        )
    from draftrank.building.kept_drafts import keep, keep_hashes  # loads torch: wrong names fail before
    from draftrank.building.pipeline import build_draft, write_text
    from draftrank.engine.backends.choice import device_for
    from draftrank.models.target_folder import ensure_target

    device = device_for(Asked(device=asked))
    with alone(workspace, progress):
        fetch = workspace.fetch_context(progress)
        folder = ensure_target(declared, fetch)
        built = build_draft(recipe, declared, folder, fetch, device=device)
        assert built.folder is not None
        recipes = workspace.root / "drafts" / target
        kept = keep(recipe, built.folder, folder, recipes)
        missing = keep_hashes(built.folder, folder.path, recipes, workspace.cache)
        if missing:
            write_text(recipe, declared, folder, fetch, missing, device=device)
            missing = keep_hashes(built.folder, folder.path, recipes, workspace.cache)
    if missing:
        progress.message(
            "text it was made with is not in the cache and cannot be written again here, so no session can compare it "
            "with prompts: keep the draft where it was built"
        )
    return kept
