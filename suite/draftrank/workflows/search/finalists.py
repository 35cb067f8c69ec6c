"""The recipes of a search that are measured in the end."""

from __future__ import annotations

from dataclasses import replace

from draftrank.catalog.recipe import Recipe
from draftrank.errors import InvalidInputError
from draftrank.workflows.search.choice import Use, copying_recipes, recipe_of
from draftrank.workflows.search.request import SearchRequest
from draftrank.workflows.search.training import Training
from draftrank.workflows.search.tried import Tried, by_prediction

FINALISTS = 2
"""Models that are measured in the end."""
_CONFIDENCE = 0.4
"""A chain that the model is less sure of ends."""


def finalists(tried: list[Tried], request: SearchRequest, training: Training) -> tuple[Recipe, ...]:
    """The most promising models in the ways they can be used, and copying alone.

    Raises:
        InvalidInputError: none could be built.
    """
    able = by_prediction(tried)
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
        promised = one.prediction
        assert promised is not None
        steps = one.choice.steps(training.shape, training.data, one.rung)
        uses = [
            Use(promised.k, copied, mixed=True, stop_below_confidence=_CONFIDENCE),
            Use(promised.k, copied, mixed=True, tree=True),
        ]
        if request.device == "cpu":
            uses += [replace(use, int8=True) for use in uses]
        if not place:
            uses.append(Use(promised.k, stop_below_confidence=_CONFIDENCE))
        for use in uses:
            words = [one.choice.in_words()]
            words += ["behind copying"] if use.mixed else []
            words += ["as a tree"] if use.tree else []
            words += ["in int8"] if use.int8 else []
            name = use.name_of(one.choice)
            recipes.append(recipe_of(request.target, name, ", ".join(words), steps, use))
    return tuple(recipes)
