"""The recipes that a search measures."""

from __future__ import annotations

from dataclasses import replace

from draftrank.catalog.recipe import Recipe
from draftrank.errors import InvalidInputError
from draftrank.jobs.session import RunRequest
from draftrank.workflows.search.choice import DraftSettings, copying_recipes, recipe_of
from draftrank.workflows.search.training import Training
from draftrank.workflows.search.tried import Tried, by_predicted_speedup

FINALISTS = 2
"""Number of models that the session measures."""
_CONFIDENCE = 0.4
"""Confidence below which a chain stops."""


def finalists(tried: list[Tried], request: RunRequest, training: Training) -> tuple[Recipe, ...]:
    """The models with the highest predicted speedups, each in several settings, and copying alone.

    Raises:
        InvalidInputError: none could be built.
    """
    able = by_predicted_speedup(tried)
    if not able:
        notes = "; ".join(one.note for one in tried if one.note)
        raise InvalidInputError.single(
            f"no model could be built within the budget{': ' + notes if notes else ''}",
            field="--budget",
            fix="allow more time",
        )
    copied = able[0].copied
    recipes = list(copying_recipes(request.target, copied))
    for place, one in enumerate(able[:FINALISTS]):
        predicted = one.prediction
        assert predicted is not None
        steps = one.choice.steps(training.shape, training.data, one.rung)
        uses = [
            DraftSettings(predicted.k, copied, cascade=True, stop_below_confidence=_CONFIDENCE),
            DraftSettings(predicted.k, copied, cascade=True, tree=True),
        ]
        if request.device == "cpu":
            uses += [replace(use, int8=True) for use in uses]
        if not place:
            uses.append(DraftSettings(predicted.k, stop_below_confidence=_CONFIDENCE))
        for use in uses:
            words = [f"{'Suffix decoding, then ' if use.cascade else ''}{one.choice.in_words()}"]
            words += ["token tree"] if use.tree else []
            words += ["int8"] if use.int8 else []
            name = use.name_of(one.choice)
            recipes.append(recipe_of(request.target, name, ", ".join(words), steps, use))
    return tuple(recipes)
