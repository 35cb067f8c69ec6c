"""Which code runs a forward, in which numbers, and where: the values that commands take and records keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeGuard, get_args

Backend = Literal["transformers", "cpp", "cuda-graphs", "llama.cpp"]
"""`transformers`: torch, as the model library has it. `cpp`: kernels compiled for this processor. `cuda-graphs`: kernels
of ours in captured CUDA graphs. `llama.cpp`: a GGUF file as it is."""
RecordedBackend = Literal["transformers", "cpp", "cuda-graphs", "llama.cpp", "torch-fused"]
"""What a session may name; `torch-fused` has retired and is only shown."""
Dtype = Literal["fp32", "bf16", "fp16"]
"""Type that a model's weights are loaded in. The dtype of a GGUF file is its own quantization, e.g. `q4_1`, which is
recorded in place of one of these."""
AskedDtype = Literal["auto", Dtype, "file"]
"""What a user asks for: a dtype, what is fastest here, or the target's GGUF file in its own quantization."""
Device = Literal["cpu", "cuda"]
"""Where models run."""
Auto = Literal["auto"]
"""What fits best here: see `engine.backends.choice`."""

OLDER_NAMES: dict[str, RecordedBackend] = {
    "torch-eager": "transformers",
    "torch-native": "cpp",
    "torch-captured": "cuda-graphs",
}
"""Backends by the names that versions before 0.3 recorded."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a user asks for; `auto` takes what is fastest here."""

    backend: Backend | Auto = "auto"
    """Which code runs the forwards of the target and its drafts."""
    dtype: AskedDtype = "auto"
    """What weights are loaded in."""
    device: Device | Auto = "auto"
    """Where."""
    allow_mixed: bool = False
    """Whether a draft that the backend cannot run is measured in another one, and not ranked with the others."""


def is_dtype(text: str) -> TypeGuard[Dtype]:
    """Whether this is a dtype that can be asked for."""
    return text in get_args(Dtype)


def is_backend(text: str) -> TypeGuard[Backend]:
    """Whether this is a backend that can still run."""
    return text in get_args(Backend)


def asked_dtype(backend: str, dtype: str) -> AskedDtype:
    """How the dtype of a session is asked for: that of a GGUF file by `file`, or not at all where the backend knows no other."""
    if is_dtype(dtype):
        return dtype
    return "file" if backend == "cpp" else "auto"
