"""Trained drafts that lie beside their recipes, so that nobody has to train to try one.

A kept draft is a file of weights and a description. What the draft shares with its target is left out, and weights
that bf16 expresses are stored in bf16; together with the target they give the very folder that was built, bit by bit,
which its hash proves each time.

It is taken for what its recipe declares, by the code that built it then: a step whose code has changed since does not make
it useless, and whoever wants today's removes the two files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from draftrank.building.kept_files import KEPT, hashes_path
from draftrank.building.text.corpus import Corpus, corpus_path
from draftrank.building.text.overlap import recorded_corpora
from draftrank.building.text.text_hashes import TextHashes
from draftrank.catalog.base import Declared
from draftrank.catalog.sources.base import check_sha256, file_sha256
from draftrank.errors import BuildError, DraftrankError, MissingDataError
from draftrank.models.cache import (
    CODE_VERSIONS,
    FACTS,
    draft_key,
    publish_folder,
    weight_files,
    weights_sha256,
)
from draftrank.models.forms import Form
from draftrank.models.loading import load_tokenizer
from draftrank.models.quiet import quiet_transformers

if TYPE_CHECKING:
    from draftrank.building.working_draft import BuildContext
    from draftrank.catalog.recipe import Recipe
    from draftrank.models.target_folder import TargetFolder

MAX_BYTES = 20_000_000
"""Of one file of kept weights."""
_WEIGHTS = "model.safetensors"
_TOKEN_IDS, _KEPT_ROWS = ".token_ids", ".projection.weight"
"""Ends of the names of a trimmed head's tensors."""
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class TargetRows(Declared):
    """Some rows of a matrix of the target, in the draft's order: a trimmed head."""

    matrix: Annotated[str, Field(max_length=300)]
    """Its name in the target."""
    token_ids: Annotated[str, Field(max_length=300)]
    """Name of the draft's own tensor that says which rows."""


class KeptDraft(Declared):
    """The description beside kept weights."""

    key: Sha256
    """Identity of the steps and the target they were done to."""
    sha256: Sha256
    """Of the file of weights."""
    weights_sha256: Sha256
    """Of the weights as they were built, and as they are put together again."""
    from_target: tuple[Annotated[str, Field(max_length=300)], ...]
    """Names of the tensors that are the target's own."""
    rows_of_target: dict[str, TargetRows] = Field(default_factory=dict)
    """For each tensor that holds some rows of one of the target's, which."""
    config: dict[str, Any]
    """The model's configuration."""
    facts: dict[str, Any]
    """What the build noted."""
    forms: tuple[Form, ...] = ()
    """As in the facts; a form that this version does not know is refused."""


def keep_hashes(built: Path, target: Path, folder: Path, cache: Path) -> tuple[str, ...]:
    """Keeps hashes of the text that a built draft was made with, as far as it is in the cache, in the target's folder of
    recipes.

    Returns:
        Keys of the corpora whose hashes are not kept.

    Raises:
        BuildError: they take too much room.
    """
    missing = []
    for key in recorded_corpora(built):
        path = corpus_path(cache, key)
        if path.is_file():
            try:
                TextHashes.of(Corpus.read(path), load_tokenizer(target)).write(hashes_path(folder, key))
            except ValueError as error:
                raise BuildError(f"the text is too long to be kept with the draft: {error}") from error
        elif not hashes_path(folder, key).is_file():
            missing.append(key)
    return tuple(missing)


def keep(recipe: Recipe, built: Path, target: TargetFolder, folder: Path) -> tuple[Path, Path]:
    """Writes a built draft beside its recipe, in the target's folder of recipes; returns the description and the weights.

    Raises:
        BuildError: the weights take too much room, or are a GGUF file.
    """
    if any(file.suffix == ".gguf" for file in weight_files(built)):
        raise BuildError(
            "what is kept are weights that were trained, and a GGUF file is written from them in seconds: keep the "
            "recipe without write_gguf"
        )
    tensors, theirs = _tensors(built), _tensors(target.path)
    shared = sorted(
        name
        for name, value in tensors.items()
        if name in theirs and torch.equal(theirs[name].to(value.dtype), value)
    )
    rows = _rows_of_target(tensors, theirs)
    own = {name: _short(value) for name, value in tensors.items() if name not in {*shared, *rows}}
    size = sum(value.nbytes for value in own.values())
    if size > MAX_BYTES:
        raise BuildError(
            f"its own weights take {size / 1e6:.1f} MB, and at most {MAX_BYTES / 1e6:.0f} are kept: trim more, and set "
            "`round_weights` in its last distill step"
        )
    facts = json.loads((built / FACTS).read_text("utf-8"))
    place = folder / KEPT
    place.mkdir(exist_ok=True)
    weights, described = place / f"{recipe.id}.safetensors", place / f"{recipe.id}.json"
    save_file(own, weights)
    text = {
        "key": draft_key(recipe.draft, target.weights_sha256, None, facts.get(CODE_VERSIONS, {})),
        "sha256": file_sha256(weights),
        "weights_sha256": facts["weights_sha256"],
        "from_target": shared,
        "rows_of_target": {name: found.model_dump(mode="json") for name, found in rows.items()},
        "config": json.loads((built / "config.json").read_text("utf-8")),
        "facts": facts,
        "forms": facts["forms"],
    }
    found = KeptDraft.model_validate_json(json.dumps(text))
    described.write_text(json.dumps(found.model_dump(mode="json"), indent=1, sort_keys=True) + "\n", "utf-8")
    return described, weights


_NO_USE = "the kept draft {} is of no use: {}"


def take_kept(
    key_by: Callable[[Mapping[str, int]], str],
    context: BuildContext,
    folder: Path,
    final: Path,
    *,
    told: bool = False,
) -> bool:
    """Puts a kept draft together in `final` if these very steps were kept, by whichever recipe; says why where it is of
    no use.

    To be called under the lock of `final`.

    Args:
        key_by: identity of the steps and the target under given versions of the steps' code (see `draft_key`).
        context: names the target, and who is told.
        folder: the target's folder of recipes.
        final: where the draft shall lie.
        told: whether descriptions that cannot be read were told of already.
    """
    progress, target = context.progress, context.target_folder
    for described in sorted((folder / KEPT).glob("*.json")):
        try:
            found = KeptDraft.model_validate_json(described.read_text("utf-8"))
        except (ValueError, OSError) as error:
            if not told:
                progress.message(_NO_USE.format(described.stem, error))
            continue
        if found.key != key_by(found.facts.get(CODE_VERSIONS, {})):
            continue  # another draft's, or the recipe has changed since
        try:
            weights = described.with_suffix(".safetensors")
            if weights.stat().st_size > MAX_BYTES + 1_000_000:
                raise MissingDataError(f"{weights.name} is larger than what is kept")
            check_sha256(weights, found.sha256, weights.name)
            with progress.stage("put the kept draft together"):
                publish_folder(
                    final,
                    lambda staging, found=found, weights=weights: _assemble(found, weights, target, staging),  # type: ignore[misc]
                )
        except (DraftrankError, SafetensorError, ValueError, LookupError, OSError) as error:
            progress.message(_NO_USE.format(described.stem, error))
        else:
            return True
    return False


def _assemble(found: KeptDraft, weights: Path, target: Path, staging: Path) -> None:
    theirs = _tensors(target)
    tensors = {
        name: value.float() if value.is_floating_point() else value
        for name, value in load_file(weights).items()
    }
    tensors |= {name: theirs[name].float() for name in found.from_target}
    tensors |= {
        name: theirs[rows.matrix][tensors[rows.token_ids]].float()
        for name, rows in found.rows_of_target.items()
    }
    save_file(tensors, staging / _WEIGHTS, metadata={"format": "pt"})
    (staging / "config.json").write_text(json.dumps(found.config, indent=2, sort_keys=True) + "\n", "utf-8")
    with quiet_transformers():
        load_tokenizer(target).save_pretrained(staging)
    (staging / FACTS).write_text(json.dumps(found.facts, indent=2, ensure_ascii=False) + "\n", "utf-8")
    if weights_sha256(weight_files(staging)) != found.weights_sha256:
        raise MissingDataError("its weights are not those that were built")


def _rows_of_target(
    tensors: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]
) -> dict[str, TargetRows]:
    """Matrices of trimmed heads that are rows of one of the target's matrices."""
    found = {}
    for ids_name, ids in tensors.items():
        if not ids_name.endswith(_TOKEN_IDS):
            continue
        name = ids_name.removesuffix(_TOKEN_IDS) + _KEPT_ROWS
        head = tensors.get(name)
        for matrix, value in theirs.items():
            if (
                head is not None
                and value.ndim == 2
                and value.shape[1:] == head.shape[1:]
                and len(ids) == len(head)
                and int(ids.max()) < len(value)
                and torch.equal(value[ids].to(head.dtype), head)
            ):
                found[name] = TargetRows(matrix=matrix, token_ids=ids_name)
                break
    return found


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in weight_files(folder):
        found |= load_file(file)
    return found


def _short(value: torch.Tensor) -> torch.Tensor:
    """In bf16 where that says the same."""
    if not value.is_floating_point():
        return value.contiguous()
    short = value.bfloat16()
    return (short if torch.equal(short.to(value.dtype), value) else value).contiguous()
