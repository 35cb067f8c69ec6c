"""What differs between two states of a workspace, and what must be measured because of it.

States are compared by content: a reworded description or a new comment changes nothing that is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from draftrank.catalog.base import Declared
from draftrank.catalog.workspace import Checked

Draft = tuple[str, str]
"""A target's id and a draft's id."""
K = TypeVar("K", str, Draft)


@dataclass(frozen=True, slots=True)
class ToMeasure:
    """A draft that has no result for what it has become."""

    target: str
    draft: str
    reason: str
    """Why, as one clause."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Ids of what is new or differs in content; each in alphabetical order."""

    drafts: tuple[Draft, ...] = ()
    """Recipes."""
    removed: tuple[Draft, ...] = ()
    """Recipes that are gone; their results stay."""
    targets: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    suites: tuple[str, ...] = ()
    """Suites that differ themselves, or hold a task that does: their boards begin anew."""
    to_measure: tuple[ToMeasure, ...] = ()
    """The changed recipes, and every recipe of a changed target."""


def compare_workspaces(before: Checked, after: Checked) -> Changes:
    """What `after` has that `before` had not."""
    old_recipes, recipes = _recipes_of(before), _recipes_of(after)
    drafts = _changed(old_recipes, recipes)
    targets = _changed({one.id: one for one in before.targets}, {one.id: one for one in after.targets})
    tasks = _changed({one.id: one for one in before.tasks}, {one.id: one for one in after.tasks})
    suites = set(_changed({one.id: one for one in before.suites}, {one.id: one for one in after.suites}))
    suites |= {suite.id for suite in after.suites if any(entry.task in tasks for entry in suite.tasks)}
    reasons: dict[Draft, str] = {
        draft: f"the target {draft[0]} changed" for draft in recipes if draft[0] in targets
    }
    reasons |= {
        draft: "the recipe changed" if draft in old_recipes else "the recipe is new" for draft in drafts
    }
    served = {(recipe.target, recipe.id) for recipe in after.recipes if recipe.draft.served_only}
    reasons = {draft: reason for draft, reason in reasons.items() if draft not in served}
    return Changes(
        drafts=drafts,
        removed=tuple(sorted(old_recipes.keys() - recipes.keys())),
        targets=targets,
        tasks=tasks,
        suites=tuple(sorted(suites)),
        to_measure=tuple(ToMeasure(*draft, reasons[draft]) for draft in sorted(reasons)),
    )


def _recipes_of(state: Checked) -> dict[Draft, Declared]:
    return {(recipe.target, recipe.id): recipe for recipe in state.recipes}


def _changed(before: Mapping[K, Declared], after: Mapping[K, Declared]) -> tuple[K, ...]:
    return tuple(
        sorted(
            name
            for name, one in after.items()
            if name not in before or before[name].content_sha256() != one.content_sha256()
        )
    )
