"""What a draft that llama.cpp runs is called and made of on the disk."""

from __future__ import annotations

from typing import Literal

GGUF_FILE = "draft.gguf"
"""The file of weights in the draft's folder."""
GgufWeights = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
"""Types of matrices, as llama.cpp names them."""
