"""The runtime of a model that torch holds, by how its forwards shall run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from draftrank.engine.backends.cpp.decoder import CppDecoder
from draftrank.engine.backends.cpp.eagle import CppEagleRuntime
from draftrank.engine.backends.cpp.runtime import CppRuntime
from draftrank.engine.backends.cuda_graphs.eagle import CudaGraphsEagleRuntime
from draftrank.engine.backends.cuda_graphs.runtime import CudaGraphsRuntime
from draftrank.engine.backends.eagle import EagleHead
from draftrank.engine.backends.own_forward import check_forward
from draftrank.engine.backends.transformers.eagle import TransformersEagleRuntime
from draftrank.engine.backends.transformers.runtime import TransformersRuntime
from draftrank.models.loading import load_model

ModelRuntime: TypeAlias = TransformersRuntime | CppRuntime | CudaGraphsRuntime

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from draftrank.catalog.precision import Forward


def load_runtime(
    folder: Path,
    dtype: Literal["fp32", "bf16", "fp16"],
    device: Literal["cpu", "cuda"],
    forward: Forward = "eager",
) -> ModelRuntime:
    """Loads a Hugging Face folder, in the form its build asks for; see `runtime_of_model`."""
    return runtime_of_model(load_model(folder, dtype, device), forward)


def runtime_of_model(model: PreTrainedModel, forward: Forward) -> ModelRuntime:
    """Wraps a model, and compares it with its own forward. Where its forward is not known as it is asked for, transformers'
    is taken.

    Raises:
        InvalidInputError: the cpp backend is asked for and cannot be compiled.
        UnsupportedModelError: see `check_forward`.
    """
    runtime: ModelRuntime
    if forward == "captured" and CudaGraphsRuntime.fits(model):
        runtime = CudaGraphsRuntime(model)
    elif forward == "native" and CppDecoder.fits(model):
        runtime = CppRuntime(model)
    else:
        runtime = TransformersRuntime(model)
    check_forward(runtime)
    return runtime


def eagle_runtime_of(model: PreTrainedModel, forward: Forward) -> EagleHead:
    """The same for an EAGLE head."""
    runtime: EagleHead
    if forward == "captured" and CudaGraphsRuntime.fits(model):
        runtime = CudaGraphsEagleRuntime(model)
    elif forward == "native" and CppDecoder.fits(model):
        runtime = CppEagleRuntime(model)
    else:
        runtime = TransformersEagleRuntime(model)
    check_forward(runtime)
    return runtime
