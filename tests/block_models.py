"""Random blocks of GGUF files, and models whose matrices are in them."""

from __future__ import annotations

import copy
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from torch import nn

from draftrank.engine.backends.cpp.library import BLOCK_TYPES
from draftrank.models.gguf_blocks import BlockEmbedding, BlockLinear
from draftrank.models.resizing import replace_module

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedModel

KINDS = tuple(GGMLQuantizationType[name] for name in BLOCK_TYPES)
_FLOATS = {"F32": np.float32, "F16": np.float16}
_HALVES = {"Q4_0": 1, "Q4_1": 2, "Q5_0": 1, "Q5_1": 2, "Q8_0": 1, "Q4_K": 2, "Q5_K": 2}
"""How many fp16 numbers a block begins with; one of Q6_K ends with one."""


def random_blocks(
    kind: GGMLQuantizationType, rows: int, inputs: int, seed: int = 0, size: float = 0.3
) -> torch.Tensor:
    """Rows of blocks, uint8 [rows, bytes]: every bit of the numbers is random, scales are so that weights are of about a
    size, and minima as large as the others."""
    chance = np.random.default_rng(seed)
    numbers, bytes_of_block = GGML_QUANT_SIZES[kind]
    if numbers == 1:
        values = torch.from_numpy(chance.normal(0, size, (rows, inputs)).astype(np.float32))
        if kind.name == "BF16":
            return values.bfloat16().view(torch.uint8)
        return torch.from_numpy(values.numpy().astype(_FLOATS[kind.name]).view(np.uint8))
    made = chance.integers(0, 256, (rows, inputs // numbers, bytes_of_block), np.uint8)
    bits = int(kind.name[1])
    scale = size / 2 ** (bits - 1) / (32 if kind.name.endswith("_K") else 1)
    count = _HALVES.get(kind.name, 1)
    halves = chance.uniform(0.5, 1.5, (*made.shape[:2], count)) * scale
    if kind.name in ("Q4_1", "Q5_1"):
        halves[..., 1] *= -(2 ** (bits - 1))
    at = slice(-2, None) if kind.name == "Q6_K" else slice(0, 2 * count)
    made[..., at] = halves.astype(np.float16).view(np.uint8)
    return torch.from_numpy(made.reshape(rows, -1))


def numbers_of(blocks: torch.Tensor, kind: GGMLQuantizationType) -> torch.Tensor:
    """What blocks are by the package `gguf`, fp32 [rows, inputs]."""
    return torch.from_numpy(np.array(dequantize(blocks.numpy(), kind), np.float32))


def fitting(kinds: Iterable[Any], inputs: int) -> list[GGMLQuantizationType]:
    """Those whose blocks rows of so many numbers can have."""
    return [kind for kind in kinds if inputs % GGML_QUANT_SIZES[kind][0] == 0]


def in_blocks(model: PreTrainedModel, seed: int = 0) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A model of the same shape with random matrices of all kinds of blocks that fit, in turn, and the same one in fp32."""
    plain, made = copy.deepcopy(model), copy.deepcopy(model)
    kinds = cycle(KINDS)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    embedded = None
    for number, (name, module) in enumerate(list(plain.named_modules())):
        if not isinstance(module, nn.Linear | nn.Embedding):
            continue
        outputs, inputs = module.weight.shape
        kind = next(kind for kind in kinds if fitting([kind], inputs))
        blocks = random_blocks(kind, outputs, inputs, seed + number)
        if isinstance(module, nn.Embedding):
            embedded = blocks, kind
            scale = getattr(module, "embed_scale", None)
            replace_module(made, name, BlockEmbedding(blocks, kind, "q4_k_m", scale))
        else:
            if tied and module is plain.get_output_embeddings():
                assert embedded is not None
                blocks, kind = embedded
            replace_module(made, name, BlockLinear(blocks, kind, "q4_k_m", module.bias))
        module.weight.data = numbers_of(blocks, kind)
    return made, plain
