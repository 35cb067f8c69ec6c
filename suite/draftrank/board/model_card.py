"""The card of an exported draft: what it is, how it was made, how fast it was where, how to use it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from draftrank.board.formats import day, decimal, span, times
from draftrank.board.recipe_text import recipe_sentence, recipe_yaml
from draftrank.board.rows import Board, BoardRow
from draftrank.catalog.target import Target
from draftrank.measure.records import DraftBuild


@dataclass(frozen=True, slots=True)
class Use:
    """One program that runs the draft, or why it cannot."""

    program: str
    language: str
    snippet: str | None
    """What to type; None where it cannot run it."""
    remark: str | None
    """What to know; with no snippet, the reason."""


def uses(
    target: Target,
    folder: str,
    k: int,
    *,
    transformers: str | None,
    vllm: str | None,
    gguf: str | None,
    gguf_file: str | None,
) -> tuple[Use, ...]:
    """How each program is given the draft.

    Args:
        target: the declaration of its target.
        folder: where the draft lies.
        k: tokens proposed per step.
        transformers: why transformers cannot open the draft that was measured; None: it can.
        vllm: the same of vLLM and SGLang.
        gguf: why it cannot be written as GGUF; None: it can.
        gguf_file: the GGUF file's name, if one was written.
    """
    source = target.source
    model = getattr(source, "repository", None) or f"PATH_OF_{target.id}"
    speculative = json.dumps({"model": folder, "num_speculative_tokens": k, "method": "draft_model"})
    opened = (
        f'draft = AutoModelForCausalLM.from_pretrained("{folder}", dtype="auto")'
        if transformers is None
        else f'draft = load_model(Path("{folder}"), "fp32", "cpu")'
    )
    imports = "from transformers import AutoModelForCausalLM\n"
    if transformers is not None:
        imports = "from pathlib import Path\nfrom draftrank.drafting.loading import load_model\n"
    generated = (
        f"{imports}{opened}\ndraft.generation_config.num_assistant_tokens = {k}\n"
        "target.generate(**inputs, assistant_model=draft)"
    )
    serve = None if vllm else f"vllm serve {model} --speculative-config '{speculative}'"
    sglang = (
        None
        if vllm
        else f"python -m sglang.launch_server --model-path {model} --speculative-algorithm STANDALONE "
        f"--speculative-draft-model-path {folder} --speculative-num-steps {k} --speculative-eagle-topk 1 "
        f"--speculative-num-draft-tokens {k + 1}"
    )
    llama = f"llama-server -m TARGET.gguf -md {folder}/{gguf_file} --draft-max {k}" if gguf_file else None
    missing = gguf or "written with `draftrank export --gguf`"
    return (
        Use("transformers", "python", generated, transformers),
        Use("vLLM", "sh", serve, vllm),
        Use("SGLang", "sh", sglang, vllm),
        Use("llama.cpp", "sh", llama, None if gguf_file else missing),
    )


def model_card(
    build: DraftBuild, target: Target, boards: Iterable[Board], uses_: Sequence[Use], facts: dict[str, str]
) -> str:
    """The card as Markdown with a YAML head.

    Args:
        build: the draft as recorded.
        target: the declaration of its target.
        boards: boards whose rows of these very weights are shown.
        uses_: see `uses`.
        facts: further lines of the lineage, by name.
    """
    recipe = build.recipe
    name, k = str(recipe["id"]), recipe["speculate"]["num_speculative_tokens"]
    head = [
        "---",
        f"license: {json.dumps(target.licence.lower())}",
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
        *map(_use, uses_),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


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
        "| suite, precision, decoding | machine | speedup | 95 % interval | acceptance length | tokens/s | output | on |",
        "|---|---|---|---|---|---|---|---|",
    ]
    table += [_line(board, row) for board, row in rows]
    reasons = [f"- {row.session}: not ranked, {row.reason}" for _, row in rows if row.reason]
    return "\n".join([*table, *(["", *reasons] if reasons else [])])


def _line(board: Board, row: BoardRow) -> str:
    key = board.key
    output = "lossy" if row.lossy else f"{row.fidelity.breaks} breaks, {row.fidelity.ties} ties"
    cells = (
        f"{key.suite}, {key.dtype}, {key.mode}",
        key.machine_class,
        times(row.speedup),
        span(row.ci),
        decimal(row.acceptance_length),
        decimal(row.tokens_per_second, 1),
        output,
        day(row.measured_at),
    )
    return f"| {' | '.join(cells)} |"


def _use(use: Use) -> str:
    remark = f"\n\n{use.remark[:1].upper()}{use.remark[1:]}." if use.remark else ""
    snippet = f"\n\n```{use.language}\n{use.snippet}\n```" if use.snippet else ""
    return f"### {use.program}{remark}{snippet}"
