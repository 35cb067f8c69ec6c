"""Models that take the place of the target's copy at the start of a recipe."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

from draftrank.catalog.sources.base import SourceBase
from draftrank.errors import BuildError
from draftrank.models.cache import weight_files
from draftrank.models.loading import load_model, load_tokenizer
from draftrank.models.quiet import quiet_transformers

if TYPE_CHECKING:
    from draftrank.building.working_draft import BuildContext, WorkingDraft


def take_pretrained(draft: WorkingDraft, source: SourceBase, context: BuildContext) -> None:
    """Puts a fetched model in the draft's place.

    Raises:
        BuildError: it is not a folder, its tokens are not the target's, or it is larger than the target.
        MissingDataError: it cannot be had, or not be opened.
    """
    folder = source.fetch(context.fetch)
    if not folder.is_dir():
        raise BuildError(f"{folder} is no model folder: name one with config.json and *.safetensors")
    tokenizer = load_tokenizer(folder)
    ours, theirs = draft.tokenizer.get_vocab(), tokenizer.get_vocab()
    if ours != theirs:
        differing = sorted(
            token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)
        )
        raise BuildError(
            f"its vocabulary differs from the target's in {len(differing)} tokens, first {differing[0]!r}: "
            "use a model with the target's tokenizer"
        )
    # the target's own file, too, holds buffers that are no parameters
    stored, most = (
        _stored_parameters(folder),
        max(draft.count_parameters(), _stored_parameters(context.target_folder)),
    )
    if stored > most:  # asked before it is loaded: it might not even fit
        raise BuildError(
            f"it has {stored:,} parameters and the target {most:,}: a draft that is larger than its target gains nothing"
        )
    draft.model = load_model(folder, "fp32", context.device)


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
