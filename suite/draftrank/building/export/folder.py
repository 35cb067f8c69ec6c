"""Takes a built draft out of the cache, in the form that another program opens without draftrank."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from draftrank.building.surgery.eagle_head import published_of
from draftrank.catalog.programs import Program
from draftrank.errors import BuildError, InvalidInputError
from draftrank.models.architecture import Architecture
from draftrank.models.cache import weight_files
from draftrank.models.eagle_writing import write_published_head
from draftrank.models.forms import (
    Eagle3Form,
    GgufForm,
    LowRankForm,
    LowRankLinear,
    TrimmedHead,
    TrimmedHeadForm,
)
from draftrank.models.loading import is_quantized, load_model, load_tokenizer, read_config, read_forms
from draftrank.models.matrices import bias_of, is_transposed, linear_of, matrix
from draftrank.models.quiet import quiet_transformers
from draftrank.models.resizing import replace_module

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GGUF = "draft.gguf"
"""Name of the file for llama.cpp."""


def require_empty(to: Path) -> None:
    """Makes a new folder.

    Raises:
        InvalidInputError: it holds something already.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise InvalidInputError.single(
            f"{to} is not empty", field="--to", fix="name a folder that does not exist yet, or empty it"
        )
    to.mkdir(parents=True, exist_ok=True)


def write_form(
    program: Program,
    folder: Path,
    target_folder: Path,
    target_file: Callable[[], Path],
    name: str,
    to: Path,
) -> list[Path]:
    """Writes a built draft as a program opens it; returns the files.

    Args:
        program: the program; one that `why_no_form` names no reason against.
        folder: the draft as it was built.
        target_folder: its target.
        target_file: gives the target's GGUF file; raises where it has none.
        name: the draft's id.
        to: an empty folder.

    Raises:
        BuildError: the program has no such model, or the form cannot be written; the message says why.
        InvalidInputError: raised by `target_file`.
    """
    forms = read_forms(folder)
    if any(isinstance(form, GgufForm) for form in forms):
        return [Path(shutil.copy2(weight_files(folder)[0], to / GGUF))]
    if is_quantized(folder):
        return _copied(folder, to)
    head = next((form for form in forms if isinstance(form, Eagle3Form)), None)
    written_out = any(isinstance(form, LowRankForm | TrimmedHeadForm) for form in forms)
    if head is None and program != "llama.cpp" and not written_out:
        return _copied(folder, to)
    model = load_model(folder, "fp32", "cpu", full_precision=True)
    if head is not None:
        return _head_files(program, model, head, target_folder, target_file, name, to)
    write_out(model, target_folder)
    if program == "llama.cpp":
        from draftrank.building.export.gguf import write_gguf

        write_gguf(model, target_file(), name, to / GGUF)
        return [to / GGUF]
    with quiet_transformers():
        model.save_pretrained(to)
        load_tokenizer(folder).save_pretrained(to)
    return sorted(to.iterdir())


@torch.no_grad()
def write_out(model: PreTrainedModel, target_folder: Path) -> None:
    """Makes an ordinary model of one with thin products and a trimmed head, in place.

    A trimmed head gets the rows of the target that were left out; all others stay as they are.

    Raises:
        BuildError: the target's rows have another width, because the draft's hidden size was pruned.
    """
    with torch.device("meta"), quiet_transformers():
        ordinary = dict(type(model)(copy.deepcopy(model.config)).named_modules())
    for name, module in list(model.named_modules()):
        if isinstance(module, LowRankLinear) and name in ordinary:
            whole, product = ordinary[name], _product(module)
            stored = product.t().contiguous() if is_transposed(whole) else product
            whole.weight = nn.Parameter(stored, requires_grad=False)
            if module.second.bias is not None:
                whole.bias = nn.Parameter(module.second.bias, requires_grad=False)
            replace_module(model, name, whole)
    shape = Architecture.of(model)
    head = shape.head(model)
    if not isinstance(head, TrimmedHead):
        return
    kept = head.projection
    if isinstance(kept, LowRankLinear):
        kept = linear_of(_product(kept), kept.second.bias)
    assert isinstance(kept, nn.Linear)
    embedding = matrix(shape.embedding(model))
    rows = embedding.clone()
    bias: torch.Tensor | None = None
    if not model.config.get_text_config().tie_word_embeddings or kept.bias is not None:
        target = load_model(target_folder, "fp32", "cpu")
        theirs = Architecture.of(target).head(target)
        rows = matrix(theirs).clone()
        bias = None if (own := bias_of(theirs)) is None else own.detach().clone()
    if rows.shape != (head.vocabulary, kept.in_features):
        raise BuildError(
            f"the rows of tokens that its head left out are gone: the target's have {rows.shape[1]} numbers, the draft's "
            f"{kept.in_features} (fix: leave prune_hidden or trim_vocabulary out)"
        )
    rows[head.token_ids] = kept.weight
    if bias is not None:
        bias[head.token_ids] = kept.bias
    replace_module(model, shape.names.output_head, linear_of(rows, bias))
    tied = torch.equal(rows, embedding)
    model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = tied
    if tied:
        model.tie_weights()


def _product(thin: LowRankLinear) -> torch.Tensor:
    """The matrix [outputs, inputs] that two thin ones make."""
    return thin.second.weight @ thin.first.weight


def _head_files(
    program: Program,
    model: PreTrainedModel,
    form: Eagle3Form,
    target_folder: Path,
    target_file: Callable[[], Path],
    name: str,
    to: Path,
) -> list[Path]:
    head = published_of(model, form)
    if program == "llama.cpp":
        from draftrank.building.export.eagle_gguf import write_eagle3_gguf

        write_eagle3_gguf(head, target_file(), name, to / GGUF)
        return [to / GGUF]
    assert program in ("vllm", "sglang", "speculators")
    architectures = read_config(target_folder).architectures or ()
    return write_published_head(
        head, program, to, target=str(target_folder), target_architectures=architectures
    )


def _copied(folder: Path, to: Path) -> list[Path]:
    return [Path(shutil.copy2(path, to / path.name)) for path in sorted(folder.iterdir()) if path.is_file()]
