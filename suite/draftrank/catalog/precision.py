"""In which precision a target is decoded, and by what."""

from __future__ import annotations

from typing import Literal

Precision = Literal["fp32", "bf16", "fp16", "gguf"]
"""`fp32`, `bf16`, `fp16`: torch, with the weights turned into that type. `gguf`: llama.cpp, with the target's own
GGUF file as it is."""


def runtime_of(precision: Precision) -> str:
    """Name of the runtime that decodes a target in this precision."""
    return "llama.cpp" if precision == "gguf" else "torch-eager"
