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


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A layer, not to be trained, of this weight [outputs, inputs] and bias [outputs], which it shares."""
    outputs, inputs = weight.shape
    linear = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear


def bias_of(module: nn.Module) -> Tensor | None:
    """Of a linear layer, [outputs]."""
    return module.bias if isinstance(module.bias, Tensor) else None


def some_rows(module: nn.Module, rows: Tensor) -> nn.Linear:
    """A copy of some outputs of a layer, given by their numbers, int64 [kept]."""
    bias = bias_of(module)
    return linear_of(matrix(module)[rows], None if bias is None else bias[rows])


def unfolded(module: nn.Module) -> nn.Linear:
    """The same layer as `nn.Linear`, sharing its bias; itself if it is one already."""
    if isinstance(module, nn.Linear):
        return module
    return linear_of(matrix(module).contiguous(), bias_of(module))
