"""In which precision a target is decoded, and by what."""

from __future__ import annotations

from typing import Literal

Precision = Literal["fp32", "bf16", "fp16", "gguf"]
"""`fp32`, `bf16`, `fp16`: torch, with the weights turned into that type. `gguf`: llama.cpp, with the target's own
GGUF file as it is."""


Forward = Literal["eager", "fused", "native", "captured"]
"""How torch's models run short forwards: as transformers does, in fewer calls of torch, or in one of our own kernels
compiled for the machine, or on a GPU in kernels of our own that are captured in CUDA graphs."""

RuntimeName = Literal["torch-eager", "torch-fused", "torch-native", "torch-captured", "llama.cpp"]
"""What decodes a target: torch with one of these forwards, or llama.cpp."""

_RUNTIMES: dict[Forward, RuntimeName] = {
    "eager": "torch-eager",
    "fused": "torch-fused",
    "native": "torch-native",
    "captured": "torch-captured",
}


def runtime_of(precision: Precision, forward: Forward) -> RuntimeName:
    """What decodes a target in this precision.

    Args:
        precision: the target's.
        forward: how torch runs short forwards.
    """
    if precision == "gguf":
        return "llama.cpp"
    return _RUNTIMES[forward]


def forward_of(runtime: str) -> Forward:
    """How the models of a runtime run short forwards; of llama.cpp's, which have forwards of their own, `eager`."""
    return next((forward for forward, name in _RUNTIMES.items() if name == runtime), "eager")


def in_words(precision: str, runtime: str) -> str:
    """Precision and runtime as they are shown: the runtime is told where it is not the usual one of the precision."""
    forward = forward_of(runtime)
    return precision if forward == "eager" else f"{precision} {forward}"
