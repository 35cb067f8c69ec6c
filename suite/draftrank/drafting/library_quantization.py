"""Quantization by libraries that transformers loads by itself.

The folder that is saved holds the quantized weights and says so in its configuration: it opens with
`AutoModelForCausalLM.from_pretrained` wherever the library is installed, and only what was saved and opened
again is ever measured.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from draftrank.drafting.matrices import matrix
from draftrank.drafting.quiet import quiet_transformers
from draftrank.errors import BuildError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from draftrank.drafting.working_draft import WorkingDraft

LibraryScheme = Literal["int8_weight_only", "int8_dynamic", "int4_weight_only", "nf4", "llm_int8"]


NF4_BLOCK = 64
"""Weights that share a scale in bitsandbytes' 4-bit formats."""


class _Library(NamedTuple):
    module: str
    extra: str
    devices: tuple[str, ...]


_LIBRARIES: dict[LibraryScheme, _Library] = {
    "int8_weight_only": _Library("torchao", "torchao", ("cpu", "cuda")),
    "int8_dynamic": _Library("torchao", "torchao", ("cpu", "cuda")),
    "int4_weight_only": _Library("torchao", "torchao", ("cuda",)),
    "nf4": _Library("bitsandbytes", "bitsandbytes", ("cpu", "cuda")),
    "llm_int8": _Library("bitsandbytes", "bitsandbytes", ("cpu", "cuda")),
}


def require_library(scheme: LibraryScheme, device: str) -> None:
    """Says what is missing before any work is done.

    Raises:
        BuildError: the library is not installed, or has no kernel for the device.
    """
    library = _LIBRARIES[scheme]
    if importlib.util.find_spec(library.module) is None:
        raise BuildError(
            f"{scheme} needs the library {library.module}: pip install 'draftrank[{library.extra}]'"
        )
    if device not in library.devices:
        raise BuildError(
            f"{library.module} has no {scheme} kernel for {device}: use --device {library.devices[0]}, or "
            "another scheme"
        )


def require_fitting(draft: WorkingDraft, scheme: LibraryScheme) -> None:
    """bitsandbytes packs 4-bit weights in blocks along each row.

    Raises:
        BuildError: a matrix has rows that are no multiple of a block.
    """
    if scheme != "nf4":
        return
    for name, module in draft.architecture.linear_layers(draft.model).items():
        columns = matrix(module).shape[1]
        if columns % NF4_BLOCK:
            raise BuildError(
                f"{name} has {columns} columns, and nf4 needs a multiple of {NF4_BLOCK}: use another scheme"
            )


def quantize_folder(
    folder: Path, scheme: LibraryScheme, keep_precise: Sequence[str], device: str
) -> PreTrainedModel:
    """Opens an ordinary model folder in quantized form, ready to be saved; computes in bf16.

    Args:
        folder: a Hugging Face folder.
        scheme: how.
        keep_precise: names, or ends of names, of linear layers that stay as they are.
        device: `cpu` or `cuda`.

    Raises:
        BuildError: the library cannot do it; the message is its own.
    """
    from transformers import AutoModelForCausalLM

    try:
        with quiet_transformers():
            return AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch.bfloat16,
                device_map=device,
                quantization_config=_configuration(scheme, list(keep_precise)),
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
            )
    except (ImportError, ValueError, RuntimeError, NotImplementedError, AssertionError) as error:
        raise BuildError(f"{_LIBRARIES[scheme].module} cannot quantize this model: {error}") from error


def _configuration(scheme: LibraryScheme, keep_precise: list[str]) -> Any:
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if scheme == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=keep_precise or None,
        )
    if scheme == "llm_int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=keep_precise or None)
    from torchao.quantization import (
        Int4WeightOnlyConfig,
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
    )

    kinds = {
        "int8_weight_only": Int8WeightOnlyConfig,
        "int8_dynamic": Int8DynamicActivationInt8WeightConfig,
        "int4_weight_only": Int4WeightOnlyConfig,
    }
    return TorchAoConfig(kinds[scheme](), modules_to_not_convert=keep_precise or None)
