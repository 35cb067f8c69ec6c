"""What a draft that llama.cpp runs is called and made of on the disk."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

GGUF_FILE = "draft.gguf"
"""The file of weights in the draft's folder."""
GgufWeights = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
"""Types of matrices, as llama.cpp names them."""
_FILE_TYPE = "general.file_type"


def quantization_of(file: Path) -> str:
    """The quantization of a GGUF file as llama.cpp names it, e.g. `q4_k_m`: what it states, else the type of most of its
    bytes."""
    from gguf import GGUFReader, LlamaFileType

    reader = GGUFReader(file)
    stated = reader.get_field(_FILE_TYPE)
    if stated is not None and int(stated.contents()) in set(LlamaFileType):
        name: str = LlamaFileType(int(stated.contents())).name
        return name.removeprefix("MOSTLY_").removeprefix("ALL_").lower()
    sizes: Counter[str] = Counter()
    for tensor in reader.tensors:
        sizes[tensor.tensor_type.name.lower()] += int(tensor.n_bytes)
    return max(sizes, key=lambda name: sizes[name], default="f32")
