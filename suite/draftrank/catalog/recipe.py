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
    """Name as it appears on the board."""
    github: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9](?:-?[A-Za-z0-9]){0,38}$")] | None = None
    """GitHub account, without the @."""


class TypicalAcceptance(Declared):
    """Medusa's lossy acceptance rule (Cai et al. 2024, arXiv:2401.10774): a proposed token is accepted if its
    probability under the target is at least min(threshold, alpha · exp(-entropy))."""

    threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.09
    """Probability at which a token is always accepted (epsilon)."""
    alpha: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3
    """Factor of exp(-entropy), which lowers the bar where the target is uncertain (delta)."""


class Speculate(Declared):
    """How the draft is used in decoding."""

    num_speculative_tokens: Annotated[int, Field(ge=1, le=MAX_SPECULATIVE_TOKENS)]
    """Maximum number of tokens proposed per step (k)."""
    typical_acceptance: TypicalAcceptance | None = None
    """Accepts typical tokens, which can change the output. Such a draft is lossy: the board ranks it apart
    and shows the quality of its outputs."""
    stop_below_confidence: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Ends a chain after the first token whose draft probability is below this value; that token is still
    proposed. In a tree, paths below this joint probability are not extended. Absent: always k tokens. Only
    for drafts with a model."""
    branch_above_probability: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Proposes a token tree of at most k nodes: besides the most likely token, every token whose path has at
    least this joint probability. Absent: a chain, which a model draws when sampling. For `suffix` drafts and
    drafts with a model, where the backend supports tree attention."""


class Recipe(Declared):
    """One draft for one target."""

    descriptive: ClassVar[frozenset[str]] = frozenset({"title", "description", "authors", "effort"})

    schema_version: Literal[1]
    """Version of this file's form."""
    id: Identifier
    """The draft's name, equal to the file's stem."""
    target: Identifier
    """The target's id; the file lies in that target's folder."""
    title: Line
    """Title on the board."""
    description: Text | None = None
    """What the recipe tries, and why."""
    authors: Annotated[tuple[Author, ...], Field(min_length=1)]
    """Authors of the recipe."""
    effort: Literal["minutes", "hours"] = "minutes"
    """Build time on two cores. A run builds drafts of `hours` only if they are named."""
    draft: Draft
    """What proposes the tokens."""
    speculate: Speculate
    """How the draft is used in decoding."""

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
    def _one_text(self) -> Recipe:
        if (
            self.speculate.branch_above_probability is not None
            and self.draft.vocabulary_mode == "string_match"
        ):
            raise ValueError(
                "speculate.branch_above_probability asks for alternatives, and `vocabulary: string_match` proposes one "
                "text (fix: remove it, or write `vocabulary: token_intersection`)"
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
