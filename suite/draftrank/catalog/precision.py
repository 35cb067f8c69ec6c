"""In which precision a target is decoded, and by what."""

from __future__ import annotations

from typing import Literal

Precision = Literal["fp32", "bf16", "fp16", "gguf"]
"""`fp32`, `bf16`, `fp16`: torch, with the weights turned into that type. `gguf`: llama.cpp, with the target's own
GGUF file as it is."""


RuntimeName = Literal["torch-eager", "torch-fused", "llama.cpp"]
"""What decodes a target: transformers' own forward, the same in fewer calls, or llama.cpp."""


FUSED: RuntimeName = "torch-fused"


def runtime_of(precision: Precision, *, fused: bool) -> RuntimeName:
    """What decodes a target in this precision.

    Args:
        precision: the target's.
        fused: whether torch runs short forwards in few calls.
    """
    if precision == "gguf":
        return "llama.cpp"
    return FUSED if fused else "torch-eager"


def in_words(precision: str, runtime: str) -> str:
    """Precision and runtime as they are shown: the runtime is told where it is not the usual one of the precision."""
    return f"{precision} fused" if runtime == FUSED else precision
