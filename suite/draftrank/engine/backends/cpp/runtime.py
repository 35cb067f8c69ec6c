"""Models whose forwards are kernels compiled for this processor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from draftrank.engine.backends.cpp.decoder import NativeDecoder
from draftrank.engine.backends.transformers.eagle import EagleRuntime
from draftrank.engine.backends.transformers.runtime import TorchRuntime

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class CppRuntime(TorchRuntime):
    """See `engine.runtime.Runtime`."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model, short=NativeDecoder(model))


class CppEagleRuntime(EagleRuntime):
    """The same for a draft that reads the target's hidden states."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model, short=NativeDecoder(model))
