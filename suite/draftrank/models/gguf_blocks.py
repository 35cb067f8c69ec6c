"""Models whose matrices stay in the blocks of their GGUF file.

The model is the one that was converted from the file (`target_folder`): its configuration, norms and biases are taken as they
are there, and each of its matrices is replaced by the rows of the file that give the same numbers, to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from draftrank.errors import InvalidInputError
from draftrank.models.attention_windows import head_size
from draftrank.models.gguf_format import GgufFile, GgufTensor, inputs_of, read_gguf
from draftrank.models.loading import load_model
from draftrank.models.resizing import replace_module

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType
    from transformers import PreTrainedModel

_ROWS_AT_A_TIME = 4096
_EMBEDDING = "token_embd"
"""What the head reads too where the file has none."""


class _Blocks(nn.Module):
    """A matrix in blocks."""

    weight: Tensor
    """uint8 [outputs, bytes of a row], mapped from the file."""

    def __init__(self, weight: Tensor, kind: GGMLQuantizationType, quantization: str) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.kind = kind
        """Type of the blocks."""
        self.quantization = quantization
        """Of the whole file, see `GgufFile`."""

    def dequantized(self, weight: Tensor) -> Tensor:
        """Some rows of the weight in fp32, [rows, inputs], by the package `gguf`."""
        return _dequantized(weight.numpy(), self.kind)


class BlockLinear(_Blocks):
    """A linear layer whose weight is in blocks. Its forward dequantizes all of it each time: it says what is right, slowly."""

    def __init__(
        self,
        weight: Tensor,
        kind: GGMLQuantizationType,
        quantization: str,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__(weight, kind, quantization)
        self.in_features, self.out_features = inputs_of(kind, weight.shape[1]), len(weight)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """fp32 [..., inputs] to [..., outputs]."""
        return nn.functional.linear(hidden, self.dequantized(self.weight), self.bias)


class BlockEmbedding(_Blocks):
    """An embedding in blocks."""

    embed_scale: Tensor | None
    """What its rows are multiplied with; None: nothing."""

    def __init__(
        self,
        weight: Tensor,
        kind: GGMLQuantizationType,
        quantization: str,
        scale: Tensor | None = None,
    ) -> None:
        super().__init__(weight, kind, quantization)
        self.register_buffer("embed_scale", scale)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [...] to fp32 [..., hidden]."""
        rows = self.dequantized(self.weight[tokens.flatten()]).view(*tokens.shape, -1)
        return rows if self.embed_scale is None else rows * self.embed_scale


def load_blocks(folder: Path, file: Path) -> PreTrainedModel:
    """Loads a target's model with the matrices of its file, for inference in fp32.

    Args:
        folder: what was converted from the file.
        file: the GGUF file.

    Raises:
        InvalidInputError: the file cannot be read, or its matrices are not those of the folder.
        MissingDataError: see `load_model`.
    """
    found = read_gguf(file)
    model = load_model(folder, "fp32", "cpu")
    names = _names(model, found)
    size = head_size(model.config.get_text_config())
    stored: dict[str, Tensor] = {}
    for name, module in _matrices(model):
        tensor = names[name]
        if tensor.name not in stored:
            stored[tensor.name] = torch.from_numpy(_rows_as(module.weight, tensor, found, size))
        rows = stored[tensor.name]
        made: nn.Module
        if isinstance(module, nn.Embedding):
            scale = getattr(module, "embed_scale", None)
            made = BlockEmbedding(rows, tensor.kind, found.quantization, scale)
        else:
            made = BlockLinear(rows, tensor.kind, found.quantization, module.bias)
        replace_module(model, name, made.eval())
    return model


def quantization_in(model: nn.Module) -> str | None:
    """The quantization of the file whose blocks a model has; None: it has none."""
    return next((one.quantization for one in model.modules() if isinstance(one, _Blocks)), None)


def _matrices(model: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Embedding]]:
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear | nn.Embedding):
            yield name, module


def _names(model: PreTrainedModel, file: GgufFile) -> dict[str, GgufTensor]:
    """The tensors of a model's matrices, by their names in the model."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    kind = next(kind for kind, known in MODEL_ARCH_NAMES.items() if known == file.architecture)
    names = get_tensor_name_map(kind, model.config.get_text_config().num_hidden_layers)
    embedding = model.get_input_embeddings().weight
    found = {}
    for name, module in _matrices(model):
        stem = names.get_name(name)
        if f"{stem}.weight" not in file.tensors and module.weight is embedding:
            stem = _EMBEDDING
        if f"{stem}.weight" not in file.tensors:
            raise _error(file, f"has no tensor {stem or name}.weight")
        found[name] = file.tensors[f"{stem}.weight"]
    return found


def _rows_as(
    weight: Tensor, tensor: GgufTensor, file: GgufFile, size: int
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The rows of a file that give a weight [outputs, inputs], in its order. llama.cpp rotates neighbouring dimensions of a head
    of queries or keys, transformers those half a head apart: so their rows may lie in another order, of heads of a `size`."""
    rows, expected = file.rows(tensor.name), weight.detach().numpy()
    if tensor.shape == expected.shape and _gives(rows, tensor, expected):
        return rows
    if tensor.shape == expected.shape and len(rows) % size == 0 and size % 2 == 0:
        order = np.arange(len(rows)).reshape(-1, size // 2, 2).swapaxes(1, 2).flatten()
        if _gives(rows[order], tensor, expected):
            return rows[order]
    what = f"the tensor {tensor.name} ({tensor.kind.name}) is not the matrix that was converted from it"
    raise _error(file, what)


def _gives(
    rows: np.ndarray[Any, np.dtype[np.uint8]], tensor: GgufTensor, expected: np.ndarray[Any, Any]
) -> bool:
    """Whether blocks are these numbers, bit by bit."""
    return all(
        np.array_equal(
            _dequantized(rows[begin : begin + _ROWS_AT_A_TIME], tensor.kind).numpy(),
            expected[begin : begin + _ROWS_AT_A_TIME],
        )
        for begin in range(0, len(rows), _ROWS_AT_A_TIME)
    )


def _dequantized(rows: np.ndarray[Any, np.dtype[np.uint8]], kind: Any) -> Tensor:
    from gguf import dequantize

    return torch.from_numpy(np.array(dequantize(rows, kind), np.float32))


def _error(file: GgufFile, what: str) -> InvalidInputError:
    return InvalidInputError.single(
        what,
        file=file.path.name,
        field="source",
        fix="use --dtype auto, or remove the target's folder in the cache",
    )
