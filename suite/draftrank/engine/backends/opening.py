"""The runtime of a model that torch holds, by how its forwards shall run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from draftrank.engine.backends.cuda_graphs.eagle import CapturedEagleRuntime
from draftrank.engine.backends.cuda_graphs.runtime import CapturedRuntime
from draftrank.engine.backends.own_forward import check_forward
from draftrank.engine.backends.transformers.eagle import EagleRuntime
from draftrank.engine.backends.transformers.runtime import TorchRuntime
from draftrank.models.loading import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from draftrank.catalog.precision import Forward

Features: TypeAlias = EagleRuntime | CapturedEagleRuntime
"""The runtime of a draft that reads hidden states."""


def load_runtime(
    folder: Path,
    dtype: Literal["fp32", "bf16", "fp16"],
    device: Literal["cpu", "cuda"],
    forward: Forward = "eager",
) -> TorchRuntime | CapturedRuntime:
    """Loads a Hugging Face folder, in the form its build asks for; see `runtime_of_model`."""
    return runtime_of_model(load_model(folder, dtype, device), forward)


def runtime_of_model(model: PreTrainedModel, forward: Forward) -> TorchRuntime | CapturedRuntime:
    """Wraps a model, and compares it with its own forward. Where its forward is not known as it is asked for, a slower one
    is taken: `fused` for `native`, `eager` for all.

    Raises:
        InvalidInputError: native forwards are asked for and cannot be compiled.
        UnsupportedModelError: see `check_forward`.
    """
    captured = forward == "captured" and CapturedRuntime.fits(model)
    runtime = CapturedRuntime(model) if captured else TorchRuntime.of(model, forward)
    check_forward(runtime)
    return runtime


def eagle_runtime_of(model: PreTrainedModel, forward: Forward) -> Features:
    """The same for a model that reads hidden states."""
    captured = forward == "captured" and CapturedRuntime.fits(model)
    runtime = CapturedEagleRuntime(model) if captured else EagleRuntime.of(model, forward)
    check_forward(runtime)
    return runtime
