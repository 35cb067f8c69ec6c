"""Any transformers causal language model, run eagerly by torch on CPU or CUDA."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from draftrank.decoding.runtimes.grouped_attention import NAME, use_attention
from draftrank.decoding.runtimes.torch_cache import RollbackCache
from draftrank.drafting.architecture import Architecture
from draftrank.drafting.loading import load_model
from draftrank.errors import InvalidInputError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def padded_rows(count: int) -> int:
    """How many rows to multiply instead of `count`.

    MKL's single-precision product takes longer with two or three rows (or any three beyond a multiple of
    four) than with the next multiple of four: measured for a 135M model, 65 and 76 ms against 59.
    """
    return count + 4 - count % 4 if count == 2 or count % 4 == 3 else count


def has_slow_row_counts(model: PreTrainedModel) -> bool:
    """Whether the model's matrices are multiplied by MKL in single precision."""
    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    plain = isinstance(weight, torch.Tensor) and weight.dtype == torch.float32
    return plain and bool(torch.backends.mkl.is_available())  # type: ignore[no-untyped-call]


class TorchRuntime:
    """A model with a static cache of its own; see `decoding.runtime.Runtime`."""

    name = "torch-eager"

    def __init__(self, model: PreTrainedModel, cache: RollbackCache | None = None) -> None:
        use_attention(model, NAME)
        config = model.config.get_text_config()
        self.model = model
        self.vocabulary_size = int(config.vocab_size)
        self.context_window = int(config.max_position_embeddings)
        self._device = next(iter(model.parameters())).device
        self._pads = self._device.type == "cpu" and has_slow_row_counts(model)
        self._cache = cache or RollbackCache.of_depth(int(config.num_hidden_layers))
        self._fed = 0
        self._features: Tensor | None = None

    @classmethod
    def load(
        cls, folder: Path, dtype: Literal["fp32", "bf16", "fp16"], device: Literal["cpu", "cuda"]
    ) -> TorchRuntime:
        """Loads a Hugging Face folder, in the form its build asks for."""
        return cls(load_model(folder, dtype, device))

    @property
    def length(self) -> int:
        """See `Runtime.length`."""
        return self._cache.length

    def reserve(self, tokens: int) -> None:
        """See `Runtime.reserve`."""
        self._cache.reserve(tokens)

    @torch.inference_mode()
    def feed(self, tokens: Sequence[int], keep: int | None = None) -> Tensor:
        """See `Runtime.feed`; the logits keep the model's dtype and device."""
        fed, wanted = len(tokens), keep or len(tokens)
        rows = padded_rows(fed) if self._pads else fed
        if self._cache.length + rows > self.context_window:
            rows = fed
        ids = torch.tensor([[*tokens, *([tokens[-1]] * (rows - fed))]], device=self._device)
        # A slice of the last rows keeps the stride of all: oneDNN then converts the whole bf16 head first.
        chosen = rows if wanted == fed else torch.arange(fed - wanted, fed, device=self._device)
        read = self._read(ids, fed)
        output = self.model(**read, past_key_values=self._cache, use_cache=True, logits_to_keep=chosen)
        self._fed = fed
        if rows > fed:
            self._cache.forget(rows - fed)
        logits: Tensor = output.logits[0, :wanted]
        return logits

    def _read(self, ids: Tensor, fed: int) -> dict[str, Tensor]:
        """What the model is called with: ids [1, rows], of which the first `fed` count."""
        return {"input_ids": ids}

    def remember_features(self) -> None:
        """See `FeaturedRuntime.remember_features`."""
        if self._features is None:
            width = int(self.model.config.get_text_config().hidden_size)
            self._features = torch.zeros((0, width), device=self._device)
            Architecture.of(self.model).norm(self.model).register_forward_hook(self._keep_features)

    def _keep_features(self, _module: object, _inputs: object, output: Tensor) -> None:
        self._features = output[0]

    def features(self) -> Tensor:
        """See `FeaturedRuntime.features`."""
        assert self._features is not None, "remember_features was not called"
        return self._features[: self._fed]

    def forget(self, count: int) -> None:
        """See `Runtime.forget`."""
        self._cache.forget(count)

    def reset(self) -> None:
        """See `Runtime.reset`."""
        self._cache.reset()

    def synchronize(self) -> None:
        """See `Runtime.synchronize`."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def first_layers(self, count: int) -> TorchRuntime:
        """See `LayeredRuntime.first_layers`.

        Raises:
            InvalidInputError: the model has not more than `count` layers.
        """
        depth = len(self._cache.layers)
        if count >= depth:
            raise InvalidInputError.single(
                f"the target has {depth} layers, so an exit after {count} leaves nothing out",
                field="draft.layers",
                fix=f"use at most {depth - 1}",
            )
        view = Architecture.of(self.model).first_layers(self.model, count)
        return TorchRuntime(view, self._cache.first(count))
