"""Drafts that may not be measured: those made with the prompts they would be measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from draftrank.catalog.prompts import TaskPrompts
from draftrank.measure.sessions.plan import DraftArm

if TYPE_CHECKING:
    from draftrank.drafting.overlap import Overlap


def refuse_overlaps(
    arms: Sequence[DraftArm], tasks: Sequence[TaskPrompts], target_folder: Path, cache: Path
) -> tuple[tuple[DraftArm, ...], tuple[str, ...]]:
    """Turns drafts whose text holds a prompt of the tasks into failed ones.

    Returns:
        The drafts, and a warning for each whose text is no longer in the cache.
    """
    from draftrank.drafting.corpus import Corpus, corpus_path
    from draftrank.drafting.loading import load_tokenizer
    from draftrank.drafting.overlap import PromptIndex, corpus_overlaps, recorded_corpora

    index = PromptIndex.of(tasks)
    tokenizer = load_tokenizer(target_folder)
    known: dict[str, tuple[Overlap, ...]] = {}
    checked, warnings = [], []
    for arm in arms:
        overlaps: dict[tuple[str, str], Overlap] = {}
        for key in recorded_corpora(arm.folder) if arm.folder else ():
            path = corpus_path(cache, key)
            if key not in known and not path.is_file():
                warnings.append(
                    f"{arm.recipe.id}: the text it was made with is no longer in the cache, so it was not "
                    "compared with the tasks' prompts"
                )
                continue
            if key not in known:
                known[key] = corpus_overlaps(Corpus.read(path), tokenizer, index)
            overlaps |= {(overlap.task, overlap.prompt): overlap for overlap in known[key]}
        checked.append(
            replace(arm, build=None, folder=None, failure=_reason(tuple(overlaps.values())))
            if overlaps
            else arm
        )
    return tuple(checked), tuple(warnings)


def _reason(overlaps: Sequence[Overlap]) -> str:
    first, more = overlaps[0], len(overlaps) - 1
    others = f", and of {more} more" if more else ""
    return (
        f"refused: the text it was made with holds words of the prompt {first.prompt} of the task "
        f'{first.task}{others}: "{first.words}"; remove them from data.prompts, or change data.seed'
    )
