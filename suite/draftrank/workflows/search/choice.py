"""The choices of a search, and the recipe of each choice."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from draftrank.catalog.recipe import Recipe
from draftrank.catalog.self_generated import SelfGenerated

RUNGS = 3
"""Number of training rounds of a model while the search still explores."""
FIRST_PASSES = 1
"""Passes over the corpus on the first rung; each further rung doubles the total."""
LEARNING_RATE = 1e-3
TTT_STEPS = 2
"""Steps of training-time test of EAGLE-3 heads."""
MIN_NGRAM = 3
"""Shortest match that a cascade copies; below it the model is right more often."""
MAX_NGRAM = 8
TOKENS_PER_MATCH = 2.0
MIN_PROBABILITY = 0.5
"""Share of earlier occurrences that must agree before a cascade copies: a doubtful copy is worse than the model's guess."""
MIN_COPIED_TOKENS, MAX_COPIED_TOKENS = 4, 10
BRANCH_ABOVE = 0.1
"""Joint probability from which a path joins the tree."""
TREE_STOPS_BELOW = 0.25
"""Joint probability below which a path is not extended."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a target that bound the choices."""

    layers: int
    ffn_channels: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Choice:
    """One draft model, apart from the length of its training."""

    layers: int | None
    """Number of the target's layers that it keeps; None: it is an EAGLE-3 head."""
    vocabulary: int | None
    """Tokens of its head; None: all."""
    ffn_channels: int | None = None
    """Feed-forward channels of each kept layer; None: all."""

    @property
    def id(self) -> str:
        """A readable name, the same for the same choice."""
        words = [f"layers{self.layers}" if self.layers else "eagle3"]
        words += [f"vocab{self.vocabulary // 1024}k"] if self.vocabulary else []
        words += [f"ffn{self.ffn_channels}"] if self.ffn_channels else []
        return "-".join(words)

    def fits(self, shape: Shape) -> bool:
        """Whether it is smaller than the target; a head takes the place of one layer."""
        return (self.layers or 1) < shape.layers and (self.vocabulary or 0) < shape.vocabulary

    def in_words(self) -> str:
        """What it is, for a title."""
        layers = f"{self.layers} {'layer' if self.layers == 1 else 'layers'}"
        words = [layers if self.layers else "EAGLE-3 head"]
        words += [f"{self.vocabulary:,}-token vocabulary"] if self.vocabulary else []
        words += [f"{self.ffn_channels:,} FFN channels"] if self.ffn_channels else []
        return ", ".join(words)

    def steps(self, shape: Shape, data: SelfGenerated, rung: int) -> list[dict[str, Any]]:
        """The steps that make it, trained as on a rung from 1.

        Those of a rung begin with those of the rung below, so that a longer training goes on from a shorter one.
        """
        corpus = _declared(data)
        steps: list[dict[str, Any]] = [
            {"kind": "drop_layers", "keep": self.layers, "select": "ends"}
            if self.layers
            else {"kind": "eagle_head", **_states_read(shape.layers)}
        ]
        if self.ffn_channels:
            steps.append(
                {"kind": "prune_ffn", "keep_channels": self.ffn_channels, "importance": "activation"}
            )
        if self.vocabulary:
            steps.append({"kind": "trim_vocabulary", "keep_tokens": self.vocabulary, "data": corpus})
        for number in range(1, rung + 1):
            training = {
                "kind": "distill",
                "data": corpus,
                "passes": self.passes_on(number),
                "learning_rate": LEARNING_RATE,
            }
            if not self.layers:
                training["ttt_steps"] = TTT_STEPS
            steps.append({**training, "cache_target_states": True})
        return steps

    def passes_on(self, rung: int) -> int:
        """Passes over the text that a rung adds."""
        return _doubled(rung - 1)


FIRST = (
    Choice(layers=None, vocabulary=8_192),
    Choice(layers=4, vocabulary=8_192),
)
"""What is tried first, as far as the target allows it: what was fastest for others."""


def _declared(data: SelfGenerated) -> dict[str, Any]:
    declared: dict[str, Any] = data.model_dump(mode="json", exclude_none=True)
    return declared


def _states_read(layers: int) -> dict[str, Any]:
    """Auxiliary hidden states of a target of so many layers: those of the published convention, which needs seven."""
    return {} if layers >= 7 else {"aux_hidden_states": sorted({1, layers // 2, layers - 1} - {0})}


def _doubled(times: int) -> int:
    return FIRST_PASSES << max(0, times - 1)


def passes_of(choice: Choice | Begun, rung: int) -> int:
    """Passes over the search's text on all rungs up to this one."""
    return sum(choice.passes_on(number) for number in range(1, rung + 1))


@dataclass(frozen=True, slots=True)
class Begun:
    """A draft model that a recipe has trained already, on the last of the `RUNGS`."""

    recipe: str
    """Id of the recipe."""
    done: str
    """Its steps up to the last training, as JSON."""

    @classmethod
    def of(cls, recipe: Recipe) -> Begun | None:
        """None of a recipe that trains nothing."""
        steps = list(recipe.draft.build_steps)
        while steps and steps[-1].kind != "distill":
            steps.pop()
        done = [step.model_dump(mode="json", exclude_none=True) for step in steps]
        return cls(recipe.id, json.dumps(done)) if done else None

    @property
    def id(self) -> str:
        """As `Choice.id`."""
        return f"{self.recipe}-longer"

    def in_words(self) -> str:
        """As `Choice.in_words`."""
        return f"{self.recipe} trained longer"

    def steps(self, shape: Shape, data: SelfGenerated, rung: int) -> list[dict[str, Any]]:
        """As `Choice.steps`; training goes on as the recipe trains."""
        steps: list[dict[str, Any]] = json.loads(self.done)
        as_before = {name: value for name, value in steps[-1].items() if name != "evaluations"}
        further = (self.passes_on(number) for number in range(RUNGS + 1, rung + 1))
        return [*steps, *({**as_before, "data": _declared(data), "passes": passes} for passes in further)]

    def passes_on(self, rung: int) -> int:
        """As `Choice.passes_on`."""
        return _doubled(rung - RUNGS) if rung > RUNGS else 0


@dataclass(frozen=True, slots=True)
class DraftSettings:
    """How a draft model proposes in the measured session."""

    k: int
    """Maximum number of tokens that the model proposes."""
    copied: int = MAX_COPIED_TOKENS
    """Maximum number of tokens that a cascade copies."""
    cascade: bool = False
    """Whether suffix decoding goes first."""
    int8: bool = False
    """Whether its matrices are in int8."""
    stop_below_confidence: float | None = None
    """Confidence stop of a chain; a tree stops by joint probability."""
    tree: bool = False
    """Whether it proposes a token tree."""

    def name_of(self, choice: Choice | Begun) -> str:
        """Id of the recipe of a model that is used like this."""
        words = ["suffix"] if self.cascade else []
        words += [choice.id]
        words += ["tree"] if self.tree else []
        words += ["int8"] if self.int8 else []
        return "-".join(words)


def recipe_of(
    target: str,
    name: str,
    title: str,
    steps: list[dict[str, Any]],
    use: DraftSettings,
    *,
    description: str = "",
) -> Recipe:
    """A recipe of these steps, as if it had been read from a file."""
    if use.int8:
        steps = [*steps, {"kind": "quantize", "scheme": "dynamic_int8"}]
    draft: dict[str, Any] = {"kind": "draft_model", "steps": steps}
    if use.cascade:
        draft |= {
            "kind": "cascade",
            "max_ngram": MAX_NGRAM,
            "min_ngram": MIN_NGRAM,
            "tokens_per_match": TOKENS_PER_MATCH,
            "min_probability": MIN_PROBABILITY,
        }
    elif steps[0]["kind"] == "eagle_head":  # alone it is a draft of its own kind, with the step's fields
        draft = {**steps[0], "kind": "eagle", "steps": steps[1:]}
    speculate: dict[str, Any] = {"num_speculative_tokens": max(use.k, use.copied) if use.cascade else use.k}
    if use.tree:
        speculate |= {"stop_below_confidence": TREE_STOPS_BELOW, "branch_above_probability": BRANCH_ABOVE}
    elif use.stop_below_confidence is not None:
        speculate["stop_below_confidence"] = use.stop_below_confidence
    return _recipe(target, name, title, description or title, "hours", draft, speculate)


def copying_recipes(target: str, copied: int = MAX_COPIED_TOKENS) -> tuple[Recipe, ...]:
    """The references that every model must beat: prompt lookup and suffix decoding of up to `copied` tokens."""
    why = "Needs no model. A search measures its models beside it."
    speculate = {"num_speculative_tokens": copied}
    trusted = {"tokens_per_match": TOKENS_PER_MATCH}
    ngrams = {"kind": "ngram", "max_ngram": MIN_NGRAM + 1, "min_ngram": 1, **trusted}
    votes = {"kind": "suffix", **trusted}
    by_match = "Prompt lookup, longer copies for longer matches"
    return (
        _recipe(target, "ngram-by-match", by_match, why, "minutes", ngrams, speculate),
        _recipe(target, "suffix", "Suffix decoding", why, "minutes", votes, speculate),
    )


def _recipe(
    target: str,
    name: str,
    title: str,
    description: str,
    effort: str,
    draft: dict[str, Any],
    speculate: dict[str, Any],
) -> Recipe:
    return Recipe.model_validate_json(
        json.dumps(
            {
                "schema_version": 1,
                "id": name,
                "target": target,
                "title": title,
                "description": description,
                "authors": [{"name": "draftrank search"}],
                "effort": effort,
                "draft": draft,
                "speculate": speculate,
            }
        )
    )
