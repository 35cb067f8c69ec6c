"""Drafts that may not be measured: those made with the prompts they would be measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from draftrank.catalog.prompts import TaskPrompts
from draftrank.errors import MissingDataError
from draftrank.measure.records import TextCompared
from draftrank.measure.sessions.plan import DraftArm

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from draftrank.building.text.overlap import Overlap, PromptIndex

_WEAKEST_FIRST: tuple[TextCompared, ...] = ("nothing", "hashes", "text")


def check_contamination(
    arms: Sequence[DraftArm], tasks: Sequence[TaskPrompts], target_folder: Path, cache: Path, recipes: Path
) -> tuple[tuple[DraftArm, ...], tuple[str, ...]]:
    """Turns drafts whose text holds a prompt of the tasks into failed ones, and notes in the others by what their text
    was compared. See `building.text.overlap`.

    Args:
        cache: where the texts are that drafts were made with.
        recipes: the target's folder of recipes, beside which hashes of texts are kept.

    Returns:
        The drafts, and a warning for each text that could not be compared, and for each draft that is not refused and whose
        text has a phrase of a prompt.
    """
    from draftrank.building.text.overlap import PromptIndex, recorded_corpora
    from draftrank.models.loading import load_tokenizer

    index = PromptIndex.of(tasks)
    tokenizer = load_tokenizer(target_folder)
    known: dict[str, tuple[TextCompared, tuple[Overlap, ...], str]] = {}
    checked, warnings = [], []
    for arm in arms:
        overlaps: dict[tuple[str, str], Overlap] = {}
        compared: set[TextCompared] = set()
        for key in recorded_corpora(arm.folder) if arm.folder else ():
            if key not in known:
                known[key] = _compare(key, index, tokenizer, cache, recipes)
            by, found, why_not = known[key]
            compared.add(by)
            for overlap in found:
                place = overlap.task, overlap.prompt
                overlaps[place] = max(overlaps.get(place, overlap), overlap, key=lambda one: one.held)
            if why_not:
                warnings.append(f"{arm.recipe.id}: text it was made with was {_NOT_COMPARED}: {why_not}")
        if arm.build and any(step.kind == "pretrained" for step in arm.recipe.draft.build_steps):
            compared.add("nothing")
            warnings.append(
                f"{arm.recipe.id}: what its ready-made model was trained on was {_NOT_COMPARED}: it is not here"
            )
        held = [overlap for overlap in overlaps.values() if overlap.held]
        if overlaps and not held:
            phrases = _told(list(overlaps.values()))
            warnings.append(
                f"{arm.recipe.id}: the text it was made with has a phrase of {phrases}, too short to refuse it"
            )
        checked.append(_judged(arm, held, compared))
    return tuple(checked), tuple(dict.fromkeys(warnings))


_NOT_COMPARED = "not compared with the tasks' prompts"


def _compare(
    key: str, index: PromptIndex, tokenizer: PreTrainedTokenizerBase, cache: Path, recipes: Path
) -> tuple[TextCompared, tuple[Overlap, ...], str]:
    """By what a text was compared, the prompts it holds, and, where it was not compared, why."""
    from draftrank.building.kept_files import hashes_path
    from draftrank.building.text.corpus import Corpus, corpus_path
    from draftrank.building.text.overlap import corpus_overlaps
    from draftrank.building.text.text_hashes import TextHashes

    path = corpus_path(cache, key)
    if path.is_file():
        return "text", corpus_overlaps(Corpus.read(path), tokenizer, index), ""
    try:
        return "hashes", TextHashes.read(hashes_path(recipes, key)).overlaps(index), ""
    except MissingDataError as error:
        return "nothing", (), f"it is not in the cache, and {error}"


def _judged(arm: DraftArm, overlaps: Sequence[Overlap], compared: set[TextCompared]) -> DraftArm:
    if overlaps:
        return replace(arm, build=None, folder=None, failure=_reason(overlaps))
    if not compared or arm.build is None:
        return arm
    weakest = next(by for by in _WEAKEST_FIRST if by in compared)
    return replace(arm, build=arm.build.model_copy(update={"text_compared": weakest}))


def _reason(overlaps: Sequence[Overlap]) -> str:
    return (
        f"refused: the text it was made with holds words of {_told(overlaps)}; remove them from data.prompts, or change "
        "data.seed"
    )


def _told(overlaps: Sequence[Overlap]) -> str:
    first, more = overlaps[0], len(overlaps) - 1
    others = f", and of {more} more" if more else ""
    return f'the prompt {first.prompt} of the task {first.task}{others}: "{first.words}"'
