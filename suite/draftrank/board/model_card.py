"""The card of an exported draft: what it is, how it was made, how fast it was where, how to use it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from draftrank.board.formats import day, decimal, span, times
from draftrank.board.parity import proofs_of
from draftrank.board.recipe_text import recipe_sentence, recipe_yaml
from draftrank.board.rows import Board, BoardRow
from draftrank.catalog.programs import NAMES, ProgramUse
from draftrank.catalog.target import Target
from draftrank.measure.parity import Parity
from draftrank.measure.records import DraftBuild


def model_card(
    build: DraftBuild,
    target: Target,
    boards: Iterable[Board],
    parities: Sequence[Parity],
    uses_: Sequence[ProgramUse],
    facts: dict[str, str],
) -> str:
    """The card as Markdown with a YAML head.

    Shows the rows of these very weights on the boards, and of their parity the newest record in each program; `facts`
    are further lines of the lineage, by name.
    """
    recipe = build.recipe
    name, k = str(recipe["id"]), recipe["speculate"]["num_speculative_tokens"]
    head = [
        "---",
        f"license: {json.dumps(_licence(recipe, target).lower())}",
        f"base_model: {json.dumps(getattr(target.source, 'repository', None) or target.id)}",
        "library_name: transformers",
        "tags: [speculative-decoding, draft-model, draftrank]",
        "---",
    ]
    lineage = {
        "target": f"{target.title} (`{target.id}`, {target.licence})",
        "made by": recipe_sentence(build),
        "recipe": f"`{build.recipe_sha256}`",
        "weights": f"`{build.weights_sha256}`",
        "parameters": f"{build.parameters:,}",
        "authors": ", ".join(author["name"] for author in recipe.get("authors", ())),
        **facts,
    }
    parts = [
        "\n".join(head),
        f"# {recipe.get('title', name)}",
        str(recipe.get("description", "")),
        f"A draft model for speculative decoding of {target.title}, to propose {k} tokens per step.",
        "## How it was made",
        "\n".join(f"- **{key}**: {value}" for key, value in lineage.items()),
        f"```yaml\n{recipe_yaml(recipe)}```",
        "## Measured",
        _measured(build, boards),
        "## Use it",
        *(_use(use, _parity(build, parities, use.program)) for use in uses_),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _licence(recipe: dict[str, Any], target: Target) -> str:
    """That of the weights it began with: a ready-made model's, or the target's."""
    for step in recipe["draft"].get("steps", ()):
        if step["kind"] == "pretrained":
            return str(step.get("licence", target.licence))
    return target.licence


def _measured(build: DraftBuild, boards: Iterable[Board]) -> str:
    rows = [
        (board, row)
        for board in boards
        for row in board.rows
        if row.weights_sha256 == build.weights_sha256 and row.recipe_sha256 == build.recipe_sha256
    ]
    if not rows:
        return "Not yet, or not with these weights."
    table = [
        "| suite, backend and dtype, decoding | machine | speedup | 95 % interval | acceptance length | tokens/s | output | on |",
        "|---|---|---|---|---|---|---|---|",
    ]
    table += [_line(board, row) for board, row in rows]
    reasons = [f"- {row.session}: not ranked, {row.reason}" for _, row in rows if row.reason]
    return "\n".join([*table, *(["", *reasons] if reasons else [])])


def _line(board: Board, row: BoardRow) -> str:
    key, fidelity = board.key, row.fidelity
    counted = f"{fidelity.breaks} breaks, {fidelity.ties} ties"
    output = "lossy" if row.lossy else counted if fidelity.status in ("ties", "breaks") else fidelity.status
    cells = (
        f"{key.suite}, {key.backend_and_dtype}, {key.mode}",
        key.machine_class,
        times(row.speedup),
        span(row.ci),
        decimal(row.acceptance_length),
        decimal(row.tokens_per_second, 1),
        output,
        day(row.measured_at),
    )
    return f"| {' | '.join(cells)} |"


def _parity(build: DraftBuild, parities: Sequence[Parity], program: str) -> str:
    """What the draft does in a program beside draftrank's engine, in sentences."""
    of_these = [
        one
        for one in parities
        if NAMES[one.engine] == program
        and (one.build.weights_sha256, one.build.recipe_sha256) == (build.weights_sha256, build.recipe_sha256)
    ]
    if not of_these:
        return f"Not compared in {program} with draftrank's engine."
    told = []
    for proof in proofs_of(of_these):
        one = proof.parity
        on = f"{one.suite}, {one.dtype}, k={one.num_speculative_tokens}, {day(one.created_at)}"
        more = (*(f"{reason[:1].upper()}{reason[1:]}." for reason in proof.report.reasons), *one.differs)
        told.append(
            f"{proof.verdict.capitalize()} with draftrank's engine (\u201chere\u201d: {one.backend}) on the same prompts ({on}). "
            + " ".join((f"{proof.sentence}.", *more))
        )
    return "\n\n".join(told)


def _use(use: ProgramUse, parity: str) -> str:
    remark = f"\n\n{use.remark[:1].upper()}{use.remark[1:]}." if use.remark else ""
    snippet = f"\n\n```{use.language}\n{use.snippet}\n```" if use.snippet else ""
    return f"### {use.program}{remark}{snippet}\n\n{parity}"
