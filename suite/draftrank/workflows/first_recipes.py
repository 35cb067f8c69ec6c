"""The recipes that a new target begins with: those without training, and the model that a search trains first."""

from __future__ import annotations

from itertools import islice
from typing import Any

from draftrank.catalog.architectures import ran_on_families
from draftrank.catalog.self_generated import SelfGenerated
from draftrank.models.description import ModelDescription
from draftrank.workflows.search.choice import FIRST, RUNGS, Choice, DraftSettings, Shape, recipe_of
from draftrank.workflows.search.prompt_prefixes import PROMPT_PREFIXES, PROMPT_TEMPERATURE

CORPUS = "prefixed-240k"
"""Id of the corpus that the trained model learns from."""
_TEXT = SelfGenerated(
    kind="self_generated", tokens=240_000, sequence_tokens=256, prompt_temperature=PROMPT_TEMPERATURE
)
_EXIT_SHARE = 3
"""An early exit runs one in so many layers."""
_USE = DraftSettings(k=4, stop_below_confidence=0.4)
"""How the trained model proposes until it is tuned."""
_COPYING: tuple[dict[str, Any], ...] = (
    {
        "id": "ngram",
        "title": "Prompt lookup (n-grams)",
        "description": "Copies the tokens that followed the most recent occurrence of the last two or three tokens. Needs no "
        "model and proposes nothing without a match.",
        "draft": {"kind": "ngram", "max_ngram": 3, "min_ngram": 2},
        "speculate": {"num_speculative_tokens": 4},
    },
    {
        "id": "suffix",
        "title": "Suffix decoding",
        "description": "Copies the continuation that most earlier occurrences of the context's suffix agree on. Proposes up "
        "to two tokens per matching token.",
        "draft": {"kind": "suffix", "tokens_per_match": 2},
        "speculate": {"num_speculative_tokens": 10},
    },
)


def first_recipes(
    target: str, model: ModelDescription, author: str
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Contents of recipes that run on the model's family, and why others are left out.

    Whether a family's layers can be cut is looked up in the table that `draftrank list architectures` shows.
    """
    cells = _cells(model.model_type)
    left_out: list[str] = []
    if not cells:
        left_out.append(
            f"the family {model.model_type} is not in the table of `draftrank list architectures`: the first build tells "
            "whether its layers can be cut"
        )

    def runs(recipe: dict[str, Any], *columns: str) -> bool:
        reason = next((cells[column] for column in columns if cells.get(column)), None)
        if reason is not None:
            left_out.append(f"the recipe {recipe['id']} is left out: {reason}")
        return reason is None

    chosen = list(_COPYING)
    if model.layers > 1:
        chosen += [recipe for recipe in [_early_exit(model.layers)] if runs(recipe, "early_exit")]
    shape = Shape(model.layers, ffn_channels=0, vocabulary=model.vocabulary)
    trained = (_trained(target, choice, shape) for choice in FIRST if choice.fits(shape))
    chosen += list(islice((recipe for recipe in trained if runs(recipe, *_columns(recipe))), 1))
    common = {"schema_version": 1, "target": target, "authors": [{"name": author}]}
    return [{**recipe, **common} for recipe in chosen], tuple(left_out)


def corpus_of(target: str, model: ModelDescription, prefixes: str | None) -> dict[str, Any]:
    """Content of the corpus that the trained recipe names.

    Args:
        prefixes: the workspace's file of prompt prefixes; None: those of a search are written out.
    """
    return {
        "schema_version": 1,
        "id": CORPUS,
        "target": target,
        "description": "The target writes prompts and answers; the prompts begin with the shared prefixes and cover many "
        "subjects.",
        "text": {
            **_TEXT.model_dump(mode="json", exclude_defaults=True),
            "sequence_tokens": min(_TEXT.sequence_tokens, model.window),
            "prompt_prefixes": prefixes or list(PROMPT_PREFIXES),
        },
    }


def _cells(model_type: str) -> dict[str, str | None]:
    """The family's row of the table of architectures; empty where it has none."""
    families = ran_on_families()
    return families.get(model_type) or families.get(model_type.removesuffix("_text")) or {}


def _early_exit(layers: int) -> dict[str, Any]:
    count = max(1, round(layers / _EXIT_SHARE))
    return {
        "id": f"early-exit-{count}",
        "title": f"Early exit after {count} of {layers} layers",
        "description": "Proposes with the first third of the target's layers and its head. A target that was not trained for "
        "early exit accepts few of its tokens.",
        "draft": {"kind": "early_exit", "layers": count},
        "speculate": {"num_speculative_tokens": 2},
    }


def _trained(target: str, choice: Choice, shape: Shape) -> dict[str, Any]:
    """What a search writes of a model that it has trained in all rounds."""
    recipe = recipe_of(
        target,
        choice.id,
        choice.in_words(),
        choice.steps(shape, _TEXT, RUNGS),
        _USE,
        description=f"What `draftrank search` trains first for this target, in {RUNGS} rounds. A search compares it "
        "with models of several layers and with other vocabularies.",
    )
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    for step in content["draft"]["steps"]:
        if "data" in step:
            step["data"] = CORPUS
    return content


def _columns(recipe: dict[str, Any]) -> list[str]:
    """Columns of the table of architectures that a trained recipe needs."""
    draft = recipe["draft"]
    return [*(["eagle_head"] if draft["kind"] == "eagle" else []), *(step["kind"] for step in draft["steps"])]
