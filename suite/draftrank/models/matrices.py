"""Linear layers as matrices [outputs, inputs], however their architecture stores them.

GPT-2 calls its linear layers Conv1D and keeps their weights transposed.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

Side = Literal["outputs", "inputs"]


def is_transposed(module: nn.Module) -> bool:
    """Whether the module stores [inputs, outputs]."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def matrix(module: nn.Module) -> Tensor:
    """The weight as [outputs, inputs]; writing into it changes the module."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach().t() if is_transposed(module) else weight.detach()


def axis(module: nn.Module, side: Side) -> int:
    """Which axis of the stored weight a side is."""
    return int((side == "inputs") != is_transposed(module))


def unfolded(module: nn.Module) -> nn.Linear:
    """The same layer as `nn.Linear`, sharing its bias; itself if it is one already."""
    if isinstance(module, nn.Linear):
        return module
    weight = matrix(module)
    outputs, inputs = weight.shape
    linear = nn.Linear(inputs, outputs, bias=module.bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if isinstance(module.bias, Tensor):
        linear.bias = nn.Parameter(module.bias.detach(), requires_grad=False)
    return linear
