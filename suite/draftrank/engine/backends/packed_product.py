"""Products of few rows with a matrix that lies in memory as the processor's kernel reads it.

Given a bf16 matrix as torch keeps it, oneDNN rearranges it in every call. Arranged once, the products of one token of a
135M model take 7.8 ms and not 11.1, those of seven 8.3 and not 12.6 (lower quartiles of 15, two quiet cores with
avx512-bf16). The arranged copy lies beside the original, which prefills go on using.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

Product = Callable[[Tensor], Tensor]
"""[rows, inputs] to [rows, outputs]."""
ROWS = 8
"""How many rows the arrangement is made for; with others it is about as fast."""


def product(weight: Tensor, bias: Tensor | None) -> Product:
    """The product with a matrix [outputs, inputs], arranged where torch knows how; the results differ in their rounding
    alone."""
    if not _can_arrange(weight):
        return lambda inputs: linear(inputs, weight, bias)
    with torch.no_grad():
        arranged = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)
        added = None if bias is None else bias.detach()
    multiply = torch.ops.mkldnn._linear_pointwise
    return lambda inputs: multiply(inputs, arranged, added, "none", [], "")


def product_of(module: nn.Module) -> Product:
    """The same of a linear layer; other modules as they are."""
    return product(module.weight, module.bias) if type(module) is nn.Linear else module


def _can_arrange(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
