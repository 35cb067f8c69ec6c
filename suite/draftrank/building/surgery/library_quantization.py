"""Quantization by libraries that transformers loads by itself.

The folder that is saved holds the quantized weights and says so in its configuration: it opens with
`AutoModelForCausalLM.from_pretrained` wherever the library is installed, and only what was saved and opened
again is ever measured.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from draftrank.errors import BuildError
from draftrank.models.attention_windows import layer_kinds
from draftrank.models.matrices import is_transposed, matrix
from draftrank.models.quiet import quiet_libraries

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from draftrank.building.working_draft import WorkingDraft

LibraryScheme = Literal["int8_weight_only", "int8_dynamic", "int4_weight_only", "nf4", "llm_int8", "gptq"]

NF4_BLOCK = 64
"""Weights that share a scale in bitsandbytes' 4-bit formats."""


GPTQ_GROUP = 64
"""Weights that share a scale in GPTQ, where a recipe says nothing."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a quantization is asked for beside its scheme."""

    keep_precise: tuple[str, ...] = ()
    """Names, or ends of names, of linear layers that stay as they are."""
    bits: int = 4
    """For GPTQ: bits per weight."""
    group_size: int = GPTQ_GROUP
    """For GPTQ: weights that share a scale."""
    parts: tuple[str, ...] = ()
    """For GPTQ: every matrix of a layer, below it."""
    layers: str | None = None
    """For GPTQ: the name of the list of layers, which it goes through one by one; None: it looks for one by itself."""
    text: Tensor | None = None
    """For GPTQ: int [sequences, length], the text on which each layer's error is made small."""


class _Library(NamedTuple):
    modules: tuple[str, ...]
    extra: str
    devices: tuple[str, ...]


_LIBRARIES: dict[LibraryScheme, _Library] = {
    "int8_weight_only": _Library(("torchao",), "torchao", ("cpu", "cuda")),
    "int8_dynamic": _Library(("torchao",), "torchao", ("cpu", "cuda")),
    "int4_weight_only": _Library(("torchao",), "torchao", ("cuda",)),
    "nf4": _Library(("bitsandbytes",), "bitsandbytes", ("cpu", "cuda")),
    "llm_int8": _Library(("bitsandbytes",), "bitsandbytes", ("cpu", "cuda")),
    "gptq": _Library(("gptqmodel", "optimum"), "gptq", ("cpu", "cuda")),
}

LIBRARY_NAMES: dict[str, str] = {scheme: library.modules[0] for scheme, library in _LIBRARIES.items()}
"""Who makes the matrices of each scheme."""


def require_library(scheme: LibraryScheme, device: str) -> None:
    """Says what is missing before any work is done.

    Raises:
        BuildError: the library is not installed, or has no kernel for the device.
    """
    library = _LIBRARIES[scheme]
    for module in library.modules:
        if importlib.util.find_spec(module) is None:
            raise BuildError(f"{scheme} needs the library {module}: pip install 'draftrank[{library.extra}]'")
    if device not in library.devices:
        raise BuildError(
            f"{library.modules[0]} has no {scheme} kernel for {device}: use --device {library.devices[0]}, or "
            "another scheme"
        )


def require_fitting(
    draft: WorkingDraft, scheme: LibraryScheme, group_size: int, keep_precise: tuple[str, ...] = ()
) -> None:
    """Weights that share a scale are packed in blocks along each row; `keep_precise`: ends of names of layers that are not
    packed.

    Raises:
        BuildError: a matrix has rows that are no multiple of a block, or the layers are not found that GPTQ goes through one by
            one.
    """
    if scheme == "gptq":
        block, fix = group_size, "another group_size"
        packed = draft.architecture.linear_layers(draft.model)
        packed = {name: module for name, module in packed.items() if not name.endswith(keep_precise)}
    elif scheme == "nf4":
        block, fix = NF4_BLOCK, "another scheme"
        packed = _packed_by_bitsandbytes(draft.model, keep_precise)
    else:
        return
    for name, module in packed.items():
        columns = matrix(module).shape[1]
        if columns % block:
            raise BuildError(
                f"{name} has {columns} columns, and {scheme} needs a multiple of {block}: use {fix}"
            )


def _packed_by_bitsandbytes(model: PreTrainedModel, keep_precise: tuple[str, ...]) -> dict[str, nn.Module]:
    """By their names; without `keep_precise`, transformers leaves out the head and what shares its weights."""
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = [*(keep_precise or get_keys_to_not_convert(model)), *(model._keep_in_fp32_modules or ())]
    return {
        name: module
        for name, module in model.named_modules()
        if (type(module) is nn.Linear or is_transposed(module)) and should_convert_module(name, kept)
    }


def quantize_folder(
    folder: Path, scheme: LibraryScheme, device: str, settings: Settings | None = None
) -> PreTrainedModel:
    """Opens an ordinary model folder in quantized form, ready to be saved; computes in bf16.

    Args:
        folder: a Hugging Face folder.
        scheme: how.
        device: `cpu` or `cuda`.
        settings: what else is asked for; None: nothing.

    Raises:
        BuildError: the library cannot do it; the message is its own.
    """
    from transformers import AutoModelForCausalLM

    settings = settings or Settings()
    # GPTQModel otherwise starts more workers than a small machine has processors.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(torch.get_num_threads()))
    try:
        with quiet_libraries():
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch.bfloat16,
                device_map=device,
                quantization_config=_configuration(folder, scheme, settings),
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
            )
    except (ImportError, ValueError, RuntimeError, NotImplementedError, AssertionError) as error:
        raise BuildError(f"{_LIBRARIES[scheme].modules[0]} cannot quantize this model: {error}") from error
    if scheme == "gptq":
        # the text would be written into the folder's configuration
        model.config.quantization_config.dataset = None
    return model


def _configuration(folder: Path, scheme: LibraryScheme, settings: Settings) -> Any:
    kept = list(settings.keep_precise) or None
    if scheme == "gptq":
        return _gptq(folder, settings)
    if scheme in ("nf4", "llm_int8"):
        from transformers import BitsAndBytesConfig

        if scheme == "llm_int8":
            return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=kept,
        )
    from torchao.quantization import (
        Int4WeightOnlyConfig,
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
    )
    from transformers import TorchAoConfig

    kinds = {
        "int8_weight_only": Int8WeightOnlyConfig,
        "int8_dynamic": Int8DynamicActivationInt8WeightConfig,
        "int4_weight_only": Int4WeightOnlyConfig,
    }
    return TorchAoConfig(kinds[scheme](), modules_to_not_convert=kept)


def _gptq(folder: Path, settings: Settings) -> Any:
    """GPTQ (Frantar et al. 2023, arXiv:2210.17323) by GPTQModel, through optimum."""
    from transformers import AutoConfig, GPTQConfig

    assert settings.text is not None
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    quantized = [[part] for part in settings.parts if not part.endswith(settings.keep_precise)]
    rows = [{"input_ids": [row], "attention_mask": [[1] * len(row)]} for row in settings.text.tolist()]
    return GPTQConfig(
        bits=settings.bits,
        dataset=rows,
        group_size=settings.group_size,
        desc_act=False,
        block_name_to_quantize=settings.layers,
        modules_in_block_to_quantize=quantized if settings.keep_precise else None,
        batch_size=1,
        # layers of different kinds are called with different arguments
        cache_block_outputs=len(set(layer_kinds(config))) <= 1,
    )
