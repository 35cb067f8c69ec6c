"""The declaration of a draft: how it is made and how it speculates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Union

from pydantic import Field, StringConstraints, model_validator

from draftrank import kinds
from draftrank.catalog.base import Declared, Identifier, Line, Text

if TYPE_CHECKING:
    from draftrank.catalog.draft import DraftBase

    Draft = DraftBase
else:
    Draft = Annotated[Union[kinds.load_kinds(kinds.DRAFTS)], Field(discriminator="kind")]  # noqa: UP007  (made at run time)

MAX_SPECULATIVE_TOKENS = 64


class Author(Declared):
    """Who made the recipe."""

    name: Line
    """Name as it shall appear."""
    github: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9](?:-?[A-Za-z0-9]){0,38}$")] | None = None
    """Account name, without the @."""


class TypicalAcceptance(Declared):
    """Medusa's lossy rule (Cai et al. 2024, arXiv:2401.10774): a proposed token stands when the target
    finds it typical, i.e. when its probability is at least min(threshold, alpha · exp(-entropy))."""

    threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.09
    """Probability that is always enough (epsilon)."""
    alpha: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3
    """Share of exp(-entropy) that is enough where the target is unsure (delta)."""


class Speculate(Declared):
    """How the draft is used while decoding."""

    num_speculative_tokens: Annotated[int, Field(ge=1, le=MAX_SPECULATIVE_TOKENS)]
    """Tokens proposed per step at most (k)."""
    typical_acceptance: TypicalAcceptance | None = None
    """Accept typical tokens instead of only those that leave the output unchanged. Lossy: such a draft is
    ranked apart, with the quality of its outputs beside its speed."""
    stop_below_confidence: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Stop proposing after a token to which the draft itself gave less probability than this (the token is
    still proposed); in a tree: do not go on behind one that has less together with all proposed before it. Absent:
    always propose k. Only for drafts with a model."""
    branch_above_probability: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Propose a tree: beside the draft's most likely token also those that, with all proposed before them, have at least
    this probability, and what follows them, k tokens in all; absent: a chain. In greedy decoding, by `suffix` drafts and
    drafts with a model, of targets in torch; when sampling a chain is proposed."""


class Recipe(Declared):
    """One draft for one target."""

    descriptive: ClassVar[frozenset[str]] = frozenset({"title", "description", "authors", "effort"})

    schema_version: Literal[1]
    """Version of this file's form."""
    id: Identifier
    """The draft's name; its file has the same."""
    target: Identifier
    """The target's id; the recipe lies in that target's folder."""
    title: Line
    """Name for people."""
    description: Text | None = None
    """What the recipe tries and why."""
    authors: Annotated[tuple[Author, ...], Field(min_length=1)]
    """Who made it."""
    effort: Literal["minutes", "hours"] = "minutes"
    """How long the build takes on two cores; a run builds drafts of hours only when they are named."""
    draft: Draft
    """What proposes the tokens."""
    speculate: Speculate
    """How it is used."""

    @model_validator(mode="after")
    def _confident(self) -> Recipe:
        able = {
            "stop_below_confidence": self.draft.has_confidence,
            "branch_above_probability": self.draft.branches,
        }
        for field, has_them in able.items():
            if getattr(self.speculate, field) is not None and not has_them:
                raise ValueError(
                    f"speculate.{field} asks for probabilities, which a draft of kind {self.draft.kind!r} does not "
                    "have (fix: remove it)"
                )
        return self

    @model_validator(mode="after")
    def _trees_are_lossless(self) -> Recipe:
        if (
            self.speculate.branch_above_probability is not None
            and self.speculate.typical_acceptance is not None
        ):
            raise ValueError(
                "speculate.branch_above_probability proposes trees, which typical_acceptance cannot judge (fix: remove "
                "one of them)"
            )
        return self
