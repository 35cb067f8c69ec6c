"""Reference arms: what another implementation makes of the same target, drafts and prompts.

Reference arms take part in the session like any other arm and are never ranked. Each record states how the
reference differs from the arm of this engine beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, get_args

from draftrank.engine.proposers.draft_model import ModelDraft
from draftrank.engine.proposers.ngram import NgramDraft
from draftrank.errors import InvalidInputError
from draftrank.measure.evidence import Reference
from draftrank.measure.machine.fingerprint import package_version
from draftrank.measure.records import Arm

if TYPE_CHECKING:
    from draftrank.catalog.recipe import Recipe

ReferenceMethod = Literal["generate", "assisted", "prompt_lookup"]
METHODS: tuple[ReferenceMethod, ...] = get_args(ReferenceMethod)
_MAX_ID = 64

_ALWAYS = (
    "Its KV cache grows with every token; this engine's is allocated beforehand.",
    "Its times include its own logits processors, stopping criteria and streamer, as every user has them.",
)
_SPECULATES = (
    "Its first forward verifies proposals too: tokens that arrive with the first one cost no decode time.",
    "What lies between two of its forwards counts as proposing.",
)
_OF_METHOD: dict[ReferenceMethod, tuple[str, ...]] = {
    "generate": _ALWAYS,
    "assisted": (
        "It proposes k tokens in every step (schedule `constant`, no confidence threshold).",
        *_SPECULATES,
        *_ALWAYS,
    ),
    "prompt_lookup": (
        "It copies from the earliest match in the context, this engine from the latest.",
        "It looks runs of tokens up by comparing the whole context anew; this engine keeps an index.",
        *_SPECULATES,
        *_ALWAYS,
    ),
}


def reference_arms(methods: Sequence[ReferenceMethod], recipes: Sequence[Recipe]) -> tuple[Arm, ...]:
    """The arms of these methods: plain `generate` once, the others once for each draft of the session that they can
    use.

    Raises:
        InvalidInputError: no draft of the session suits a method, or a draft has the name of an arm.
    """
    arms = []
    for method in METHODS:
        if method not in methods:
            continue
        suited = [recipe for recipe in recipes if _suits(recipe, method)]
        if method == "generate":
            arms.append(_arm(method, None))
        elif suited:
            arms += [_arm(method, recipe) for recipe in suited]
        else:
            needed = (
                "with a model of its own and the target's vocabulary"
                if method == "assisted"
                else "of the kind ngram"
            )
            raise InvalidInputError.single(
                f"{_spelled(method)} needs a draft {needed}, and the run has none",
                field="--reference",
                fix="name one with --draft, or leave this reference out",
            )
    clash = {arm.id for arm in arms} & {recipe.id for recipe in recipes}
    if clash:
        raise InvalidInputError.single(
            f"{min(clash)!r} is both a draft and a reference", field="--draft", fix="rename the draft"
        )
    return tuple(arms)


def _suits(recipe: Recipe, method: ReferenceMethod) -> bool:
    if method == "assisted":
        return isinstance(recipe.draft, ModelDraft) and recipe.draft.vocabulary == "same"
    return method == "prompt_lookup" and isinstance(recipe.draft, NgramDraft)


def _arm(method: ReferenceMethod, recipe: Recipe | None) -> Arm:
    differs = (*(_differences(recipe) if recipe else ()), *_OF_METHOD[method])
    name = "-".join(["transformers", _spelled(method), *([recipe.id] if recipe else [])])
    return Arm(
        id=_shortened(name),
        kind="reference",
        num_speculative_tokens=recipe.speculate.num_speculative_tokens if recipe else 0,
        reference=Reference(
            implementation=f"transformers {package_version('transformers')}",
            method=method,
            draft=recipe.id if recipe else None,
            differs=differs,
        ),
    )


def _differences(recipe: Recipe) -> Iterator[str]:
    """What this draft declares and `generate` has no setting for."""
    draft, speculate = recipe.draft, recipe.speculate
    if isinstance(draft, NgramDraft) and draft.min_ngram > 1:
        yield f"It looks up single tokens too; this engine at least {draft.min_ngram} tokens."
    if speculate.stop_below_confidence is not None:
        threshold = speculate.stop_below_confidence
        yield f"It never stops proposing early; this engine does below a confidence of {threshold:g}."
    if speculate.branch_above_probability is not None:
        yield "It verifies chains of tokens; this engine trees."
    if speculate.typical_acceptance is not None:
        yield "It leaves the output unchanged; this engine accepts by the draft's lossy rule."


def _shortened(name: str) -> str:
    if len(name) <= _MAX_ID:
        return name
    return f"{name[:55].rstrip('-.')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _spelled(method: ReferenceMethod) -> str:
    return method.replace("_", "-")
