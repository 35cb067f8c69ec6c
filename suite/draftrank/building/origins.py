"""Models that take the place of the target's copy at the start of a recipe."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

from draftrank.catalog.sources.base import SourceBase
from draftrank.errors import BuildError, DraftrankError
from draftrank.models.cache import weight_files
from draftrank.models.loading import load_model, load_tokenizer
from draftrank.models.quiet import quiet_transformers
from draftrank.models.target_folder import ensure_model
from draftrank.models.vocabulary import check_vocabularies

if TYPE_CHECKING:
    from draftrank.building.working_draft import BuildContext, WorkingDraft


def take_pretrained(draft: WorkingDraft, source: SourceBase, context: BuildContext) -> None:
    """Puts a fetched model in the draft's place, with its own tokenizer.

    Raises:
        BuildError: it is no model, has no tokenizer, its tokens are not the target's and the recipe says that they are,
            or it is larger than the target.
        MissingDataError: it cannot be had, or not be opened.
    """
    try:
        folder = ensure_model(source, context.fetch)
        tokenizer = load_tokenizer(folder)
        if context.own_vocabulary is None:
            check_vocabularies(context.target_folder, folder)
    except DraftrankError as error:
        raise BuildError(str(error)) from error
    # The target's own file, too, may hold buffers that are no parameters.
    stored, most = (
        _stored_parameters(folder),
        max(draft.count_parameters(), _stored_parameters(context.target_folder)),
    )
    if stored > most:  # asked before it is loaded: it might not even fit
        raise BuildError(
            f"it has {stored:,} parameters and the target {most:,}: a draft that is larger than its target gains nothing"
        )
    draft.model, draft.tokenizer = load_model(folder, "fp32", context.device), tokenizer


def _stored_parameters(folder: Path) -> int:
    """How many numbers its weights hold, by the files' headers."""
    count = 0
    for path in weight_files(folder):
        with safe_open(path, "pt") as tensors:
            count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return count


def draw_at_random(draft: WorkingDraft, seed: int) -> None:
    """Replaces all weights by random ones, drawn as the architecture is initialised."""
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(seed)
        fresh = type(draft.model)(copy.deepcopy(draft.model.config))
    if draft.model.generation_config is not None:
        fresh.generation_config = copy.deepcopy(draft.model.generation_config)
    draft.model = fresh.to(draft.model.device).eval().requires_grad_(False)
