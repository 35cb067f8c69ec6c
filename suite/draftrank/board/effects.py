"""What one change to a recipe is worth: pairs of drafts on one board whose recipes differ in one thing.

Drafts of one session took turns on the same prompts, so their ratio is free of what differs between days and targets:
the closest that results of recipes come to an experiment. Those of two sessions are known beside their own baselines,
and their ratio is as much less sure. What two drafts may differ in beside the one thing is only how many tokens they
propose, which each recipe chooses for itself.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from draftrank.board.ranking import contender_of
from draftrank.board.recipe_text import draft_of
from draftrank.board.rows import Board, BoardKey, BoardRow
from draftrank.building.steps.eagle_head import HeadFields
from draftrank.catalog.base import canonical_json
from draftrank.catalog.draft import DraftBase
from draftrank.measure.statistics.comparing import Answer, SpeedRatio
from draftrank.measure.statistics.estimates import Interval
from draftrank.measure.statistics.ranking_evidence import ratio_of

FIRST_COPY = "n-grams first"
"""The technique of a draft that copies where it can, beside the same model alone."""
MODEL_BEHIND = "a draft model in a cascade"
"""The technique of such a draft, beside n-grams alone."""
TREE = "a tree of tokens"
"""The technique of a draft that proposes runners-up too, beside the same that proposes chains."""


@dataclass(frozen=True, slots=True)
class Change:
    """The one thing in which a recipe differs from another."""

    technique: str
    words: str
    """What was done, as a clause."""


@dataclass(frozen=True, slots=True)
class Effect:
    """A change, and what came of it."""

    board: BoardKey
    change: Change
    before: BoardRow
    after: BoardRow
    ratio: SpeedRatio
    """Speed with the change as a multiple of that without."""

    @property
    def side_by_side(self) -> bool:
        """Whether both took turns in one session; else each is known beside its own baseline only."""
        return self.before.session == self.after.session


@dataclass(frozen=True, slots=True)
class TechniqueEffects:
    """All effects of one technique."""

    technique: str
    effects: tuple[Effect, ...]
    """The largest gain first."""

    def count(self, answer: Answer) -> int:
        """How many of them gave this answer."""
        return sum(effect.ratio.answer == answer for effect in self.effects)

    @property
    def finding(self) -> str:
        """What its pairs say together, after the technique's name."""
        pairs, faster, slower = len(self.effects), self.count("faster"), self.count("slower")
        of = f"of {pairs} pair" + ("s" if pairs > 1 else "")
        if faster and slower:
            return f"faster in {faster}, slower in {slower} {of}: it depends on the draft"
        if faster or slower:
            answer, count, other = ("faster", faster, "slower") if faster else ("slower", slower, "faster")
            return f"{answer} in {count} {of}, {other} in none"
        return f"neither faster nor slower in any {of}"

    @property
    def holds(self) -> bool:
        """Whether it could be told of some pair, and no two answers contradict each other."""
        return bool(self.count("faster")) != bool(self.count("slower"))

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets whose drafts they are."""
        return tuple(sorted({effect.board.target for effect in self.effects}))


def effects_of(boards: Sequence[Board]) -> tuple[TechniqueEffects, ...]:
    """The effects that these boards show, by technique.

    Only drafts that are ranked count. Of a pair that several suites show for one target, machine, backend, dtype and mode,
    the one with the narrowest interval stands.
    """
    found: dict[tuple[str, ...], Effect] = {}
    for board in boards:
        for effect in _on_board(board):
            key = effect.board
            place = (key.target, key.machine_class, key.backend, key.dtype, key.device, key.mode)
            pair = (*place, effect.before.draft, effect.after.draft)
            if pair not in found or _width(effect) < _width(found[pair]):
                found[pair] = effect
    grouped: dict[str, list[Effect]] = defaultdict(list)
    for effect in found.values():
        grouped[effect.change.technique].append(effect)
    return tuple(
        TechniqueEffects(name, tuple(sorted(grouped[name], key=lambda one: -one.ratio.value)))
        for name in sorted(grouped)
    )


def changes_among(recipes: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, Change]]:
    """Pairs of recorded recipes of one target of which the second is the first with one step more, or with another way
    to propose: the id without the change, the id with it, and the change."""
    parts = {name: _Parts.of(recipe) for name, recipe in recipes.items()}
    equal: dict[_Parts, list[str]] = defaultdict(list)
    for name, part in parts.items():
        equal[part].append(name)
    for name, part in parts.items():
        made = draft_of(dict(recipes[name]))
        if made is None:
            continue
        declared = made.build_steps[
            len(made.build_steps) - len(part.steps) :
        ]  # an `eagle` draft's head is no step
        for place, step in enumerate(declared):
            rest = (*part.steps[:place], *part.steps[place + 1 :])
            if place and part.steps[place] == part.steps[place - 1]:
                continue  # without either of two equal steps the same is left
            for before in equal.get(replace(part, steps=rest), ()):
                yield before, name, Change(step.technique, step.sentence())
        for before in equal.get(replace(part, rule=_rule(recipes[name], branches=False)), ()):
            if before != name and part.rule != parts[before].rule:
                yield before, name, Change(TREE, "runners-up are verified beside its most likely tokens")
        if part.kind == "cascade":
            yield from _against_its_halves(name, made, part, parts)


def _against_its_halves(
    name: str, made: DraftBase, part: _Parts, parts: Mapping[str, _Parts]
) -> Iterator[tuple[str, str, Change]]:
    """A draft that copies first, beside its model alone and beside n-grams alone."""
    for other, found in parts.items():
        if found.rule != part.rule:
            continue
        if found.kind in ("draft_model", "eagle") and found.steps == part.steps:
            yield other, name, Change(FIRST_COPY, "copying goes first; the model proposes without a match")
        elif found.kind == "ngram":
            steps = "; then ".join(step.sentence() for step in made.build_steps)
            yield other, name, Change(MODEL_BEHIND, f"a model proposes where copying finds no match: {steps}")


@dataclass(frozen=True, slots=True)
class _Parts:
    """A recipe as far as it decides how a draft proposes, but for how many tokens."""

    kind: str
    steps: tuple[str, ...]
    others: str
    """Every other field of the draft."""
    rule: str
    """How its tokens are judged, and whether they form a tree."""

    @classmethod
    def of(cls, recipe: Mapping[str, Any]) -> _Parts:
        draft = dict(recipe.get("draft", {}))
        steps = list(draft.pop("steps", ()))
        if draft.get("kind") == "eagle":  # built as a cascade's model with the step `eagle_head` is
            head = {name: draft.pop(name) for name in HeadFields.model_fields if name in draft}
            steps.insert(0, {"kind": "eagle_head", **head})
        made = tuple(map(canonical_json, steps))
        return cls(str(draft.get("kind")), made, canonical_json(draft), _rule(recipe))


def _rule(recipe: Mapping[str, Any], *, branches: bool = True) -> str:
    speculate = recipe.get("speculate", {})
    tree = speculate.get("branch_above_probability") if branches else None
    return canonical_json([speculate.get("typical_acceptance"), tree])


def _on_board(board: Board) -> Iterator[Effect]:
    rows = {
        row.draft: row for row in board.rows if row.ranked and row.ci is not None and row.build is not None
    }
    recipes = {name: row.build.recipe for name, row in rows.items() if row.build is not None}
    for before, after, change in changes_among(recipes):
        log = ratio_of(contender_of(rows[after]), contender_of(rows[before]))
        low, high = log.ends()
        interval = Interval(low, high) if low > 0 and high < math.inf else None
        ratio = SpeedRatio(log.ratio, interval, log.above_one)
        yield Effect(board.key, change, rows[before], rows[after], ratio)


def _width(effect: Effect) -> float:
    interval = effect.ratio.interval
    return math.log(interval.high / interval.low) if interval else math.inf
