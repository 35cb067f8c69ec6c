"""Where the parts of a model are, told once per architecture.

Steps and early-exit drafting cut models by layer. All they know of an architecture is one row of the
table below; supporting another one is one more row.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from draftrank.errors import BuildError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True, slots=True)
class Architecture:
    """Names of a causal language model's parts, as attributes of its modules."""

    model_type: str
    """`model_type` of the configuration."""
    decoder: str
    """The module below the head: embedding, layers and final norm."""
    layer_list: str
    """In the decoder: the decoder layers."""
    final_norm: str
    """In the decoder: the norm after the last layer."""
    token_embedding: str
    """In the decoder: the token embedding."""
    output_head: str = "lm_head"
    """In the model: the projection to the vocabulary."""
    per_layer_fields: tuple[str, ...] = ()
    """Lists of the configuration with one entry per layer."""

    @classmethod
    def of(cls, model_or_config: PreTrainedModel | PretrainedConfig) -> Architecture:
        """The description that fits a model.

        Raises:
            BuildError: there is none for this architecture.
        """
        config = getattr(model_or_config, "config", model_or_config)
        found = _BY_MODEL_TYPE.get(config.model_type)
        if found is None:
            raise BuildError(
                f"the architecture {config.model_type!r} cannot be cut by layer; supported: "
                f"{', '.join(_BY_MODEL_TYPE)}"
            )
        return found

    def layers(self, model: PreTrainedModel) -> nn.ModuleList:
        """The decoder layers, in order."""
        layers = getattr(self._decoder(model), self.layer_list)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def norm(self, model: PreTrainedModel) -> nn.Module:
        """The norm after the last layer."""
        return _module(self._decoder(model), self.final_norm)

    def embedding(self, model: PreTrainedModel) -> nn.Module:
        """The token embedding; its weight has shape [vocabulary, hidden]."""
        return _module(self._decoder(model), self.token_embedding)

    def head(self, model: PreTrainedModel) -> nn.Module:
        """The projection to the vocabulary; its weight may be the embedding's."""
        return _module(model, self.output_head)

    def hidden_states(self, model: PreTrainedModel, token_ids: Tensor) -> Tensor:
        """Final hidden states after the norm: [batch, length] int64 to [batch, length, hidden]."""
        hidden: Tensor = self._decoder(model)(input_ids=token_ids, use_cache=False).last_hidden_state
        return hidden

    def logits(self, model: PreTrainedModel, hidden: Tensor, head: nn.Module | None = None) -> Tensor:
        """Logits [..., vocabulary] of final hidden states [..., hidden], through `head` if given."""
        logits: Tensor = (head or self.head(model))(hidden)
        cap = getattr(model.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def keep_layers(self, model: PreTrainedModel, indices: Sequence[int]) -> None:
        """Drops all other layers, in place; the model's configuration follows.

        Args:
            model: the model to cut.
            indices: which layers stay, ascending, from 0.

        Raises:
            BuildError: an index is out of range or out of order, or the architecture's layers
                compute differently at another depth.
        """
        layers = self.layers(model)
        if (
            not indices
            or list(indices) != sorted(set(indices))
            or not 0 <= indices[0] <= indices[-1] < len(layers)
        ):
            raise BuildError(
                f"the model has layers 0 to {len(layers) - 1}; {list(indices)} does not name some of them in "
                "ascending order"
            )
        if getattr(model.config, "scale_attn_by_inverse_layer_idx", False):
            raise BuildError("the model scales attention by the layer's index, so its layers cannot be moved")
        kept = nn.ModuleList(layers[index] for index in indices)
        for position, layer in enumerate(kept):
            for module in layer.modules():
                if hasattr(module, "layer_idx"):
                    module.__dict__["layer_idx"] = position
        setattr(self._decoder(model), self.layer_list, kept)
        self._set_depth(model.config, indices)

    def first_layers(self, model: PreTrainedModel, count: int) -> PreTrainedModel:
        """A model of the first `count` layers, the final norm and the head, sharing every weight.

        The original stays as it is; moving or training the view moves or trains the original.

        Raises:
            BuildError: the model has not that many layers.
        """
        layers = self.layers(model)
        if not 1 <= count <= len(layers):
            raise BuildError(f"the model has {len(layers)} layers, so {count} of them cannot be run")
        config = copy.deepcopy(model.config)
        self._set_depth(config, range(count))
        decoder = _shallow_copy(self._decoder(model))
        decoder.config = config
        setattr(decoder, self.layer_list, nn.ModuleList(layers[:count]))
        view = _shallow_copy(model)
        view.config = config
        setattr(view, self.decoder, decoder)
        return view

    def _decoder(self, model: PreTrainedModel) -> nn.Module:
        return _module(model, self.decoder)

    def _set_depth(self, config: PretrainedConfig, indices: Sequence[int]) -> None:
        for name in self.per_layer_fields:
            values = getattr(config, name, None)
            if values is not None:
                setattr(config, name, [values[index] for index in indices])
        config.num_hidden_layers = len(indices)


ARCHITECTURES = (
    Architecture("llama", "model", "layers", "norm", "embed_tokens"),
    Architecture("gemma3_text", "model", "layers", "norm", "embed_tokens", per_layer_fields=("layer_types",)),
    Architecture("gpt2", "transformer", "h", "ln_f", "wte"),
)
"""Every supported architecture, one row each."""

_BY_MODEL_TYPE = {row.model_type: row for row in ARCHITECTURES}


def _module(parent: nn.Module, name: str) -> nn.Module:
    module = getattr(parent, name)
    assert isinstance(module, nn.Module)
    return module


def _shallow_copy(module: nn.Module) -> nn.Module:
    """The same parts in a new module: replacing one of them leaves the original alone."""
    twin = copy.copy(module)
    for registry in ("_modules", "_parameters", "_buffers"):
        twin.__dict__[registry] = dict(module.__dict__[registry])
    return twin
