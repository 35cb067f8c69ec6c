"""The backends by name: which model each can run and why not, and how a model is opened in one.

A backend is a class that wraps a model of torch, `Class(model)`; a new one is one entry of `_BACKENDS` beside its file.
llama.cpp opens files instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.ao.nn.quantized.dynamic import Linear as DynamicInt8Linear

from draftrank.catalog.backend import Backend, Device, Dtype
from draftrank.engine.backends.blocks import SUPPORTED
from draftrank.engine.backends.own_forward import check_forward
from draftrank.errors import IncompatibleDraftError
from draftrank.models.gguf_blocks import load_blocks, quantization_in
from draftrank.models.gguf_format import GGUF_FILE, GgufFile, quantization_of
from draftrank.models.loading import DTYPES, load_model, outline, read_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from draftrank.engine.backends.base import Runtime
    from draftrank.engine.backends.eagle import EagleHead


@dataclass(frozen=True, slots=True)
class _Entry:
    runtime: str
    """module:class, imported when it is wanted."""
    eagle: str
    """The same for a draft that reads hidden states."""
    fits: str | None = None
    """The same for the class whose `fits` says which models it can be given; None: all."""
    device: Device | None = None
    """The only device that it knows; None: both."""
    dtypes: tuple[Dtype, ...] = ("fp32", "bf16", "fp16")


_HOME = "draftrank.engine.backends"
_BACKENDS: dict[Backend, _Entry] = {
    "transformers": _Entry(
        f"{_HOME}.transformers.runtime:TransformersRuntime",
        f"{_HOME}.transformers.runtime:TransformersEagleRuntime",
    ),
    "cpp": _Entry(
        f"{_HOME}.cpp.runtime:CppRuntime",
        f"{_HOME}.cpp.runtime:CppEagleRuntime",
        f"{_HOME}.cpp.decoder:CppDecoder",
        "cpu",
        ("fp32", "bf16"),
    ),
    "cuda-graphs": _Entry(
        f"{_HOME}.cuda_graphs.runtime:CudaGraphsRuntime",
        f"{_HOME}.cuda_graphs.eagle:CudaGraphsEagleRuntime",
        f"{_HOME}.cuda_graphs.runtime:CudaGraphsRuntime",
        "cuda",
        ("fp32", "bf16"),
    ),
}


def why_not(backend: Backend, model: PreTrainedModel | Path, dtype: Dtype, device: Device) -> str | None:
    """Why a backend cannot run a model; None where it can.

    The model is loaded, without weights (`skeleton`), or a GGUF file, whose weights have a type of their own whatever
    `dtype` says."""
    reason = why_not_here(backend, device)
    if reason is not None:
        return reason
    if isinstance(model, Path) or backend == "llama.cpp":
        if isinstance(model, Path) and backend == "llama.cpp":
            return None
        return "it needs a GGUF file" if backend == "llama.cpp" else "it is a GGUF file, which llama.cpp runs"
    return _unfit(backend, model, dtype)


def _unfit(backend: Backend, model: PreTrainedModel, dtype: Dtype) -> str | None:
    entry = _BACKENDS[backend]
    if dtype not in entry.dtypes:
        return f"it computes in {' and '.join(entry.dtypes)}, not in {dtype}"
    if entry.fits is None:
        return None
    if getattr(model.config, "quantization_config", None) is not None or _foreign(model):
        return "its matrices are made by another library"
    return None if _class(entry.fits).fits(model) else _what_is_unknown(model)


def why_not_here(backend: Backend, device: Device) -> str | None:
    """Why a backend can run no model at all on this machine's device; None where it can."""
    if backend == "llama.cpp":
        if device != "cpu":
            return "it runs on the CPU only: use --device cpu"
        if find_spec("llama_cpp") is None:
            return "llama-cpp-python is not installed: pip install 'draftrank[llama-cpp]', or `make llama-cpp` in a checkout"
        return None
    wanted = device_of(backend)
    if wanted not in (None, device):
        return f"it runs on {'a GPU' if wanted == 'cuda' else 'the CPU'} only: use --device {wanted}"
    if backend == "cpp":
        from draftrank.engine.backends.cpp.library import COMPILERS, compiler

        if compiler() is None:
            return (
                f"no C++ compiler is here ({', '.join(COMPILERS)}): install one (Debian: `apt install g++`)"
            )
    if backend == "cuda-graphs" and find_spec("triton") is None:
        return "Triton is not installed, which comes with torch for CUDA"
    return None


def why_not_blocks(file: GgufFile) -> str | None:
    """Why `cpp` cannot multiply by the blocks of a GGUF file; None where it can."""
    from draftrank.engine.backends.cpp.library import BLOCK_TYPES

    unknown = next((one for one in file.tensors.values() if one.kind.name not in BLOCK_TYPES), None)
    if unknown is None:
        return None
    return (
        f"{file.path.name}: the tensor {unknown.name} is of the type {unknown.kind.name}, and its kernels know "
        f"{', '.join(BLOCK_TYPES)}"
    )


def device_of(backend: Backend) -> Device | None:
    """The only device that a backend runs on; None: both."""
    return "cpu" if backend == "llama.cpp" else _BACKENDS[backend].device


def skeleton(folder: Path, dtype: Dtype) -> PreTrainedModel:
    """A folder's model without its weights, for `why_not`: on torch's meta device.

    Raises:
        MissingDataError: the folder cannot be opened as a model.
        UnsupportedModelError: see `read_config`.
    """
    return outline(read_config(folder), folder / "config.json", DTYPES[dtype])


def open_runtime(model: PreTrainedModel, backend: Backend) -> Runtime:
    """Wraps a model, and compares it with its own forward in transformers.

    Raises:
        IncompatibleDraftError: the backend cannot run it; it is never run by another one.
        InvalidInputError: the backend's kernels cannot be compiled.
        UnsupportedModelError: see `check_forward`.
    """
    runtime: Runtime = _opened(model, backend, _BACKENDS[backend].runtime)
    return runtime


def open_eagle_runtime(model: PreTrainedModel, backend: Backend) -> EagleHead:
    """The same for a draft that reads the target's hidden states."""
    runtime: EagleHead = _opened(model, backend, _BACKENDS[backend].eagle)
    return runtime


def load_runtime(folder: Path, dtype: Dtype, device: Device, backend: Backend) -> Runtime:
    """Loads a Hugging Face folder, in the form its build asks for; raises as `load_model` and `open_runtime`."""
    return open_runtime(load_model(folder, dtype, device), backend)


def load_blocks_runtime(folder: Path, file: Path) -> Runtime:
    """Opens a target in the backend `cpp` with its GGUF file's own blocks; raises as `load_blocks` and `open_runtime`.

    Args:
        folder: the Hugging Face folder that was converted from the file.
        file: the GGUF file.
    """
    return open_runtime(load_blocks(folder, file), "cpp")


def load_gguf_runtime(file: Path, vocabulary: int | None = None) -> Runtime:
    """Opens a GGUF file in llama.cpp; `vocabulary` is the width of a logits row, None: the file's own number of tokens."""
    runtime: Runtime = _class(f"{_HOME}.llama_cpp.runtime:LlamaCppRuntime")(file, vocabulary=vocabulary)
    return runtime


def dtype_of(runtime: Runtime, folder: Path | None = None) -> str:
    """What a runtime's forwards compute in: `int8` for torch's dynamic int8, with blocks of a GGUF file its quantization, in
    llama.cpp that of the file in `folder`."""
    model = getattr(runtime, "model", None)
    if model is None:
        assert folder is not None
        return quantization_of(folder / GGUF_FILE)
    int8 = any(isinstance(module, DynamicInt8Linear) for module in model.modules())
    return "int8" if int8 else quantization_in(model) or _dtype_of(model)


def _opened(model: PreTrainedModel, backend: Backend, where: str) -> Any:
    reason = _unfit(backend, model, _dtype_of(model))
    if reason is not None:
        raise IncompatibleDraftError(f"the backend {backend} cannot run it: {reason}")
    runtime = _class(where)(model)
    check_forward(runtime)
    return runtime


def _class(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)


def _dtype_of(model: PreTrainedModel) -> Dtype:
    return next((name for name, dtype in DTYPES.items() if dtype == model.dtype), "fp32")


def _foreign(model: PreTrainedModel) -> bool:
    """Whether a weight is not a plain matrix but what a library makes of one, e.g. torch's sparse tensors."""
    return any(type(parameter.data) is not torch.Tensor for parameter in model.parameters())


def _what_is_unknown(model: PreTrainedModel) -> str:
    kind = str(model.config.get_text_config().model_type)
    if kind not in SUPPORTED:
        return f"the architecture {kind} is not written for it (known: {', '.join(SUPPORTED)})"
    return f"a part of this {kind} model is not written for it, such as matrices of several types, products of thin ones or the size of its heads"
