"""Runtimes of small models by backend, without the comparison that opening makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from draftrank.engine.backends.cpp.decoder import CppDecoder
from draftrank.engine.backends.cpp.eagle import CppEagleRuntime
from draftrank.engine.backends.cpp.runtime import CppRuntime
from draftrank.engine.backends.transformers.eagle import TransformersEagleRuntime
from draftrank.engine.backends.transformers.runtime import TransformersRuntime

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from draftrank.engine.backends.eagle import EagleHead

BACKENDS = ("transformers", "cpp")
"""Those that run on any CPU."""


def runtime_by(model: PreTrainedModel, backend: str) -> TransformersRuntime | CppRuntime:
    """The model by a backend, which must know it."""
    if backend == "transformers":
        return TransformersRuntime(model)
    assert CppDecoder.fits(model)
    return CppRuntime(model)


def eagle_by(model: PreTrainedModel, backend: str) -> EagleHead:
    """The same of an EAGLE head."""
    return TransformersEagleRuntime(model) if backend == "transformers" else CppEagleRuntime(model)
