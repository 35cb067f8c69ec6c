"""torchao's weight-only int8 on CPU, by the kernel that torch has for it.

Eagerly torchao turns the weights back into bf16 before every product. torch has a kernel that multiplies bf16
activations by int8 weights as they are, which is what torch.compile would choose; it needs the weights as
torchao holds them, so nothing but the speed changes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from draftrank.models.resizing import replace_module


class PackedInt8Linear(nn.Module):
    """A linear layer with int8 weights and one scale per output channel."""

    weight: Tensor
    """int8 [outputs, inputs]."""
    scale: Tensor
    """bf16 [outputs]."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = bias

    def forward(self, hidden: Tensor) -> Tensor:
        """bf16 [..., inputs] to [..., outputs]."""
        product: Tensor = torch._weight_int8pack_mm(hidden.flatten(0, -2), self.weight, self.scale)
        if self.bias is not None:
            product = product + self.bias
        return product.view(*hidden.shape[:-1], len(self.weight))


def use_packed_kernel(model: nn.Module) -> None:
    """Replaces the linear layers that torchao holds in int8 with unquantized activations."""
    for name, module in list(model.named_modules()):
        weight = getattr(module, "weight", None)
        if (
            isinstance(module, nn.Linear)
            and type(weight).__name__ == "Int8Tensor"
            and weight.act_quant_kwargs is None  # type: ignore[union-attr]
            and weight.scale.numel() == len(weight)  # type: ignore[union-attr, arg-type]
        ):
            scale = weight.scale.flatten().to(torch.bfloat16)  # type: ignore[union-attr]
            bias = None if module.bias is None else module.bias.detach()
            # the kernel reads whole vectors, which a mapped file does not align
            replace_module(model, name, PackedInt8Linear(weight.qdata.clone(), scale.clone(), bias))  # type: ignore[union-attr]
