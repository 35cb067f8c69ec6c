"""A draft as another engine is given it: exported, configured, and with what is known to differ from its recipe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from draftrank.catalog.backend import Dtype
from draftrank.catalog.programs import NAMES, Program, what_differs
from draftrank.catalog.recipe import Recipe
from draftrank.catalog.target import Target
from draftrank.catalog.workspace import Workspace
from draftrank.engine.proposers.engine_method import EngineMethod
from draftrank.engine.proposers.ngram import NgramDraft
from draftrank.engine.proposers.suffix import SuffixDraft
from draftrank.errors import InvalidInputError
from draftrank.progress import Progress
from draftrank.serving.base import Speculation


def export_draft(
    workspace: Workspace, recipe: Recipe, engine: Program, to: Path, progress: Progress
) -> Path | None:
    """The folder, or for llama.cpp the file, that an engine is given; None for a draft without weights.

    Raises:
        BuildError: the draft cannot be built, or has no such form.
        MissingDataError: its source cannot be had now.
    """
    from draftrank.models.target_folder import ensure_model
    from draftrank.workflows.export import export

    draft = recipe.draft
    if isinstance(draft, EngineMethod):
        return ensure_model(draft.source, workspace.fetch_context(progress)) if draft.source else None
    if not draft.has_weights:
        return None
    done = export(workspace, recipe.target, recipe.id, to, (), (), programs=(engine,), progress=progress)
    (form,) = done.forms
    return form.folder / form.files[0] if engine == "llama.cpp" else form.folder


def speculation_of(recipe: Recipe, exported: Path | None, k: int) -> Speculation:
    """A draft as an engine is told of it.

    Raises:
        InvalidInputError: no engine has drafts of this kind.
    """
    draft = recipe.draft
    if isinstance(draft, EngineMethod):
        return Speculation(draft.method, k, exported, options=draft.options, own=True)
    if isinstance(draft, NgramDraft):
        return Speculation("ngram", k, None, draft.max_ngram, draft.min_ngram)
    if isinstance(draft, SuffixDraft):
        options: dict[str, int | float] = {
            "suffix_decoding_max_tree_depth": draft.max_match + k,
            "suffix_decoding_max_cached_requests": 0,  # what it remembers of other prompts would count for this one
            "suffix_decoding_max_spec_factor": draft.tokens_per_match,
            "suffix_decoding_min_token_prob": draft.min_probability,
        }
        return Speculation("suffix", k, options=options)
    if not draft.has_weights:
        raise InvalidInputError.single(
            f"no other engine has drafts of the kind {draft.kind!r}",
            field="draft",
            fix="name an n-gram or suffix draft, one with a model, or an engine's own method",
        )
    return Speculation("eagle3" if "EAGLE-3 head" in draft.traits else "draft_model", k, exported)


def gguf_of_target(
    workspace: Workspace, target: Target, folder: Path, dtype: Dtype, to: Path, progress: Progress
) -> Path:
    """A new GGUF file with a target's weights as they lie in its folder, for llama.cpp.

    Raises:
        InvalidInputError: the target does not come as a GGUF file, which tells what else such a file says.
    """
    from draftrank.building.export.gguf import write_gguf
    from draftrank.models.loading import load_model
    from draftrank.models.target_folder import gguf_file

    source = gguf_file(target, workspace.fetch_context(progress))
    to.mkdir(parents=True, exist_ok=True)
    file = to / f"{target.id}.gguf"
    with progress.stage("write the target as GGUF"):
        weights = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}[dtype]
        write_gguf(load_model(folder, "fp32", "cpu"), source, target.id, file, weights)  # type: ignore[arg-type]
    return file


def facts_of(recipe: Recipe, engine: Program, speculation: Speculation) -> dict[str, Any]:
    """What a record tells of an exported draft: fields that `Parity` and `ServingArm` share."""
    return {
        "speculation": told_of(speculation),
        "form": _form_of(speculation),
        "export_sha256": _export_sha256(speculation),
        "differs": tuple(differences(recipe, engine)),
    }


def told_of(speculation: Speculation) -> dict[str, Any]:
    """What an engine was told of a draft, without paths."""
    told: dict[str, Any] = {
        "method": speculation.method,
        "num_speculative_tokens": speculation.num_speculative_tokens,
    }
    if speculation.max_ngram:
        told |= {"max_ngram": speculation.max_ngram, "min_ngram": speculation.min_ngram}
    return told | dict(speculation.options)


def _form_of(speculation: Speculation) -> str:
    if speculation.model is None:
        return "settings"
    return "GGUF" if speculation.model.is_file() else "safetensors"


def _export_sha256(speculation: Speculation) -> str | None:
    from draftrank.models.cache import weight_files, weights_sha256

    if speculation.model is None:
        return None
    model = speculation.model
    return weights_sha256([model] if model.is_file() else weight_files(model))


def differences(recipe: Recipe, engine: Program) -> Iterator[str]:
    """What a recipe asks for beyond k, and what an engine does in another way, as sentences."""
    draft, speculate = recipe.draft, recipe.speculate
    if isinstance(draft, NgramDraft):
        if draft.tokens_per_match is not None:
            yield "It proposes k tokens whatever matches; the recipe copies more the longer the match is."
        if engine == "llama.cpp":
            yield (
                f"llama.cpp looks up runs of {draft.min_ngram} tokens only, and copies nothing where fewer than that follow "
                "the match."
            )
        elif engine == "sglang":
            yield "SGLang looks up runs of lengths of its own."
        else:
            yield f"{NAMES[engine]} copies from the earliest match in the context, this engine from the latest."
        if engine == "transformers" and draft.min_ngram > 1:
            yield f"transformers looks up single tokens too; this engine at least {draft.min_ngram} tokens."
        return
    if recipe.draft.kind == "cascade":
        yield "Its model runs alone; the recipe copies from the context first."
    if speculate.stop_below_confidence is not None:
        yield (
            "It proposes k tokens in every step; the recipe ends a chain below a confidence of "
            f"{speculate.stop_below_confidence:g}."
        )
    if speculate.branch_above_probability is not None:
        yield "It proposes chains; the recipe proposes token trees."
    if speculate.typical_acceptance is not None:
        yield "It leaves the output unchanged; the recipe accepts by a lossy rule."
    written = what_differs(draft.traits)
    if written is not None:
        yield f"In the exported form {written}."
    if engine == "llama.cpp" and draft.has_weights:
        yield "The exported matrices are float16."
