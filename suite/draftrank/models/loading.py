"""Opens model folders: targets as they are, drafts in the form their build asks for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from draftrank.errors import IncompatibleDraftError, MissingDataError
from draftrank.models.attention_windows import context_window, require_cache, require_decoder
from draftrank.models.cache import FACTS, weight_files
from draftrank.models.forms import (
    FORMS,
    DynamicInt8Form,
    Form,
    GgufForm,
    SemiStructuredForm,
    fill,
    quantize_linear_layers,
    use_sparse_kernels,
)
from draftrank.models.packed_int8 import use_packed_kernel
from draftrank.models.quiet import quiet_libraries, quiet_transformers
from draftrank.models.vocabulary_rows import cut_rows, know_only, pad_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DtypeName = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[DtypeName, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def load_model(
    folder: Path,
    dtype: DtypeName,
    device: str,
    *,
    full_precision: bool = False,
    rows: int | None = None,
    known: Sequence[int] | None = None,
) -> PreTrainedModel:
    """Loads a causal language model for inference: evaluation mode, no gradients.

    Only safetensors are read and no code of the folder is run. A draft in dynamic int8 computes the rest
    in fp32, one quantized by a library in bf16, whatever `dtype` says.

    Args:
        folder: a Hugging Face folder.
        dtype: precision of the weights.
        device: `cpu` or `cuda`.
        full_precision: whether a draft in dynamic int8 is left as the plain weights that its folder holds.
        rows: how many rows the target's vocabulary has, for a draft beside it (`vocabulary_rows`); None: as saved.
        known: the only tokens that its head is to answer for, ascending (`vocabulary_rows.know_only`); None: all.

    Raises:
        IncompatibleDraftError: a form of the draft does not run on this device, or has rows that cannot be cut off.
        BuildError: this build of torch has no engine for it.
        MissingDataError: the folder cannot be opened as a model, or lacks some of its weights.
        UnsupportedModelError: it is no decoder-only language model, or keeps its state outside of a cache.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    forms = read_forms(folder)
    if full_precision:
        forms = [form for form in forms if not isinstance(form, DynamicInt8Form)]
    int8 = next((form for form in forms if isinstance(form, DynamicInt8Form)), None)
    if int8 and device != "cpu":
        raise IncompatibleDraftError(
            "a dynamic_int8 draft runs on CPU only: use --device cpu, or leave its quantize step out"
        )
    if any(isinstance(form, GgufForm) for form in forms):
        raise IncompatibleDraftError(
            "the draft is a GGUF file, which llama.cpp runs and transformers does not"
        )
    read_config(folder)
    try:
        with quiet_libraries() if is_quantized(folder) else quiet_transformers():
            model, told = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=_weights_dtype(folder, dtype, int8 is not None),
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told instead, as an error is one without names
                **({"device_map": device} if is_quantized(folder) else {}),
            )
    except ImportError as error:
        raise IncompatibleDraftError(
            f"{folder.name} needs a library that is not installed: {error}"
        ) from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise MissingDataError(f"{folder} cannot be opened as a model: {error}") from error
    require_cache(model)
    model.eval()
    model.requires_grad_(False)
    replaced = [name for form in forms for name in form.prepare(model)]
    if replaced:
        fill(model, replaced, {k: v for path in weight_files(folder) for k, v in load_file(path).items()})
    _require_weights(folder, model, told, replaced)
    if getattr(model, "hf_quantizer", None) is None:  # a library's own tensors stay as it made them
        _own_memory(model)
    elif device == "cpu":
        use_packed_kernel(model)
    if rows is not None:
        cut_rows(model, rows)
    if known is not None:
        know_only(model, known)
    if int8:
        quantize_linear_layers(model, int8.keep_precise)
    if getattr(model, "hf_quantizer", None) is None:
        model.to(device)
        if device == "cuda" and dtype != "fp32":
            for form in forms:
                if isinstance(form, SemiStructuredForm):
                    use_sparse_kernels(model, form.modules)
    if rows is not None:
        pad_rows(model, rows)
    return model


def _require_weights(folder: Path, model: nn.Module, told: dict[str, Any], replaced: Sequence[str]) -> None:
    """Refuses a folder whose files left weights as random as they were; those of replaced modules were filled."""
    filled = tuple(f"{one}." for one in replaced)
    other = [
        f"{name} is {list(found)}, not {list(wanted)}"
        for name, found, wanted in sorted(told["mismatched_keys"])
        if not name.startswith(filled)
    ]
    missing = {name for name in told["missing_keys"] if not name.startswith(filled)}
    named = dict(model.named_parameters(remove_duplicate=False))
    given = {id(weight) for name, weight in named.items() if name not in missing}
    lacking = sorted(name for name in missing if name in named and id(named[name]) not in given)
    if lacking or other:
        what = (
            f"misses {len(lacking)} weights, such as {lacking[0]}"
            if lacking
            else f"has weights of another shape: {other[0]}"
        )
        raise MissingDataError(
            f"{folder} {what}: its config.json describes another model than its *.safetensors hold; fetch the folder again"
        )


def _own_memory(model: nn.Module) -> None:
    """Moves the weights from the mapped file into memory of this process, aligned as torch likes it:
    speed and memory then do not depend on the page cache. Tied weights stay tied."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer.

    Raises:
        MissingDataError: it has none that can be opened.
    """
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        raise MissingDataError(f"{folder} has no tokenizer that can be opened: {error}") from error


def read_config(folder: Path) -> PretrainedConfig:
    """The configuration of a folder's model.

    Raises:
        MissingDataError: it has none that transformers can read.
        UnsupportedModelError: it is not that of a decoder-only language model.
    """
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # configurations are checked by whatever their authors write
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise MissingDataError(f"{folder} cannot be opened as a model: {reason}") from error
    require_decoder(config)
    return config


def window_of_folder(folder: Path) -> int | None:
    """See `context_window`, of a folder's model."""
    return context_window(read_config(folder))


def compute_dtype(device: str) -> DtypeName:
    """The precision in which the target is run while drafts are built: bf16 where the processor or
    the GPU multiplies bf16 natively, else fp32."""
    if device == "cpu":
        probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        return "bf16" if probe is not None and probe() else "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def _weights_dtype(folder: Path, dtype: DtypeName, int8: bool) -> torch.dtype:
    if int8:
        return torch.float32
    return torch.bfloat16 if is_quantized(folder) else DTYPES[dtype]


def is_quantized(folder: Path) -> bool:
    """Whether the folder's weights are those of a quantization library."""
    path = folder / "config.json"
    return path.is_file() and "quantization_config" in json.loads(path.read_text("utf-8"))


def read_forms(folder: Path) -> list[Form]:
    """What is to be done to a folder's model when it is loaded."""
    path = folder / FACTS
    if not path.is_file():
        return []
    facts = json.loads(path.read_text("utf-8"))
    if facts.get("load_form") == "dynamic_int8":  # as drafts were noted first
        return [DynamicInt8Form()]
    return FORMS.validate_python(facts.get("forms", []), strict=False)
