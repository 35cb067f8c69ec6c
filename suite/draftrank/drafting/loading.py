"""Opens model folders: targets as they are, drafts in the form their build asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from draftrank.drafting.quiet import quiet_transformers
from draftrank.errors import BuildError, IncompatibleDraftError, MissingDataError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DtypeName = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[DtypeName, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
FACTS = "draftrank.json"
"""The file in a folder of ours that says how it was made and is to be loaded."""

_ENGINES = ("x86", "fbgemm", "onednn", "qnnpack")


def load_model(folder: Path, dtype: DtypeName, device: str) -> PreTrainedModel:
    """Loads a causal language model for inference: evaluation mode, no gradients.

    Only safetensors are read and no code of the folder is run. A draft whose load form is
    `dynamic_int8` has int8 linear layers and computes the rest in fp32, whatever `dtype` says.

    Args:
        folder: a Hugging Face folder.
        dtype: precision of the weights.
        device: `cpu` or `cuda`.

    Raises:
        IncompatibleDraftError: the folder's load form does not run on this device.
        BuildError: this build of torch has no engine for it.
        MissingDataError: the folder cannot be opened as a model.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    int8 = _load_form(folder) == "dynamic_int8"
    if int8 and device != "cpu":
        raise IncompatibleDraftError(
            "a dynamic_int8 draft runs on CPU only: use --device cpu, or leave its quantize step out"
        )
    try:
        with quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch.float32 if int8 else DTYPES[dtype],
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise MissingDataError(f"{folder} cannot be opened as a model: {error}") from error
    model.eval()
    model.requires_grad_(False)
    _own_memory(model)
    if int8:
        quantize_linear_layers(model)
    return model.to(device)


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


def compute_dtype(device: str) -> DtypeName:
    """The precision in which the target is run while drafts are built: bf16 where the processor or
    the GPU multiplies bf16 natively, else fp32."""
    if device == "cpu":
        probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        return "bf16" if probe is not None and probe() else "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def quantize_linear_layers(model: nn.Module) -> None:
    """Replaces every linear layer by its dynamic int8 form, in place: int8 weights with one scale per
    output channel, activations quantized per forward.

    A head that shares the embedding's weight gets its own int8 copy; the embedding stays fp32.

    Raises:
        BuildError: torch has no quantized engine for this processor.
    """
    from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

    supported = torch.backends.quantized.supported_engines
    engine = next((name for name in _ENGINES if name in supported), None)
    if engine is None:
        raise BuildError("this build of torch has no int8 engine for this processor: leave quantize out")
    if torch.backends.quantized.engine not in _ENGINES:
        torch.backends.quantized.engine = engine
    _unfold_conv1d(model)
    with quiet_transformers():
        quantize_dynamic(  # type: ignore[no-untyped-call]
            model, {nn.Linear: per_channel_dynamic_qconfig}, dtype=torch.qint8, inplace=True
        )


def _unfold_conv1d(model: nn.Module) -> None:
    """GPT-2 calls its linear layers Conv1D and keeps their weights transposed."""
    from transformers.pytorch_utils import Conv1D

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Conv1D):
                inputs, outputs = child.weight.shape
                linear = nn.Linear(inputs, outputs, device="meta")
                linear.weight = nn.Parameter(child.weight.detach().t().contiguous(), requires_grad=False)
                linear.bias = nn.Parameter(child.bias.detach(), requires_grad=False)
                setattr(module, name, linear)


def _load_form(folder: Path) -> str:
    path = folder / FACTS
    if not path.is_file():
        return "plain"
    return str(json.loads(path.read_text("utf-8")).get("load_form", "plain"))
