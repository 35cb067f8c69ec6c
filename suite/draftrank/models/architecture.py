"""Where the parts of a model are, told once per architecture.

Steps and early-exit drafting cut models by layer. All they know of an architecture is one row of the
table below; supporting another one is one more row.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from draftrank.errors import BuildError
from draftrank.models.forms import FEATURES

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from draftrank.building.training.training_time_test import TrainingTimeTest


@dataclass(frozen=True, slots=True)
class Block:
    """Names of a decoder layer's parts, as attributes of its modules."""

    attention: str = "self_attn"
    """In the layer."""
    queries: str = "q_proj"
    """In the attention, as the next three."""
    keys: str = "k_proj"
    values: str = "v_proj"
    attention_output: str = "o_proj"
    feed_forward: str = "mlp"
    """In the layer."""
    feed_forward_inputs: tuple[str, ...] = ("gate_proj", "up_proj")
    """In the feed-forward network: what makes its channels."""
    feed_forward_output: str = "down_proj"
    """In the feed-forward network: what reads them."""
    feed_forward_size: str = "intermediate_size"
    """The configuration's field of how many there are."""
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    """In the layer: norms over the hidden channels."""

    @property
    def fused(self) -> bool:
        """Whether one matrix makes queries, keys and values."""
        return self.queries == self.keys

    def attention_parts(self) -> tuple[str, ...]:
        """Every matrix of the attention, below the layer."""
        names = dict.fromkeys((self.queries, self.keys, self.values, self.attention_output))
        return tuple(f"{self.attention}.{name}" for name in names)

    def feed_forward_parts(self) -> tuple[str, ...]:
        """Every matrix of the feed-forward network, below the layer."""
        return tuple(
            f"{self.feed_forward}.{name}" for name in (*self.feed_forward_inputs, self.feed_forward_output)
        )


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
    block: Block = Block()
    """A decoder layer's parts."""
    norm_offset: float = 0.0
    """What a norm adds to its weight before it multiplies."""
    embedding_grows_with_width: bool = False
    """Whether embeddings are multiplied by the square root of the hidden size."""

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

    def layer_name(self, index: int) -> str:
        """Name of a decoder layer in the model."""
        return f"{self.decoder}.{self.layer_list}.{index}"

    def linear_layers(self, model: PreTrainedModel) -> dict[str, nn.Module]:
        """The matrices of all decoder layers by their names in the model, in order; not the head."""
        parts = (*self.block.attention_parts(), *self.block.feed_forward_parts())
        names = [
            f"{self.layer_name(index)}.{part}" for index in range(len(self.layers(model))) for part in parts
        ]
        return {name: model.get_submodule(name) for name in names}

    def norm(self, model: PreTrainedModel) -> nn.Module:
        """The norm after the last layer."""
        return _module(self._decoder(model), self.final_norm)

    def embedding(self, model: PreTrainedModel) -> nn.Module:
        """The token embedding; its weight has shape [vocabulary, hidden]."""
        return _module(self._decoder(model), self.token_embedding)

    def head(self, model: PreTrainedModel) -> nn.Module:
        """The projection to the vocabulary; its weight may be the embedding's."""
        return _module(model, self.output_head)

    def hidden_states(
        self,
        model: PreTrainedModel,
        token_ids: Tensor,
        features: Tensor | None = None,
        ahead: TrainingTimeTest | None = None,
    ) -> Tensor:
        """Final hidden states after the norm: [batch, length] int64 to [batch, length, hidden].

        Args:
            model: what to run.
            token_ids: what it reads.
            features: [batch, length, hidden], for a model that reads the target's hidden states too.
            ahead: what it remembers of forwards over the same tokens; None: nothing, and the text as it stands.
        """
        read = (
            {"input_ids": token_ids}
            if features is None
            else {"inputs_embeds": self.fused(model, token_ids, features)}
        )
        seen = {"use_cache": False} if ahead is None else ahead.next_forward(token_ids)
        hidden: Tensor = self._decoder(model)(**read, **seen).last_hidden_state
        return hidden

    def states_of_layers(self, model: PreTrainedModel, token_ids: Tensor, layers: Sequence[int]) -> Tensor:
        """Outputs of some layers, then final states after the norm: [batch, length] int64 to
        [batch, length, (layers + 1) · hidden].

        Args:
            model: what to run.
            token_ids: what it reads.
            layers: numbers of layers, from 0.
        """
        kept: dict[int, Tensor] = {}

        def keep(
            number: int, _module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]
        ) -> None:
            kept[number] = output[0] if isinstance(output, tuple) else output

        hooks = [self.layers(model)[number].register_forward_hook(partial(keep, number)) for number in layers]
        try:
            final = self.hidden_states(model, token_ids)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat([*(kept[number] for number in layers), final], -1) if layers else final

    def fused(self, model: PreTrainedModel, token_ids: Tensor, features: Tensor) -> Tensor:
        """What the first layer of a model reads that was made to read features; arguments as above."""
        fusion = _module(model, FEATURES)
        fused: Tensor = fusion(self.embedding(model)(token_ids), features)
        return fused

    def logits(
        self, model: PreTrainedModel, hidden: Tensor, head: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Logits [..., vocabulary] of final hidden states [..., hidden], through `head` if given."""
        logits: Tensor = (head or self.head(model))(hidden)
        logits = logits / getattr(model.config, "logits_scaling", 1.0)
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
        self.replace_layers(model, [layers[index] for index in indices], indices)

    def first_layers(self, model: PreTrainedModel, count: int) -> PreTrainedModel:
        """A model of the first `count` layers, the final norm and the head, sharing every weight.

        The original stays as it is; moving or training the view moves or trains the original.

        Raises:
            BuildError: the model has not that many layers.
        """
        layers = self.layers(model)
        if not 1 <= count <= len(layers):
            raise BuildError(f"the model has {len(layers)} layers, so {count} of them cannot be run")
        return self.view_of(model, layers[:count], range(count))

    def view_of(
        self, model: PreTrainedModel, layers: Iterable[nn.Module], indices: Sequence[int]
    ) -> PreTrainedModel:
        """A model that runs other layers between the same embedding and head, sharing every weight.

        It has no cache of its own numbering: feed it whole sequences, or the model's first layers.

        Args:
            model: the model to look at; it stays as it is.
            layers: the layers to run, in order.
            indices: for each, the layer of the model whose configuration it has.
        """
        config = copy.deepcopy(model.config)
        self._set_depth(config, indices)
        decoder = _shallow_copy(self._decoder(model))
        decoder.config = config
        setattr(decoder, self.layer_list, nn.ModuleList(layers))
        view = _shallow_copy(model)
        view.config = config
        setattr(view, self.decoder, decoder)
        return view

    def replace_layers(
        self, model: PreTrainedModel, layers: Iterable[nn.Module], indices: Sequence[int]
    ) -> None:
        """Makes the model run these layers, in place; arguments as above.

        Raises:
            BuildError: the architecture's layers compute differently at another depth.
        """
        if getattr(model.config, "scale_attn_by_inverse_layer_idx", False):
            raise BuildError("the model scales attention by the layer's index, so its layers cannot be moved")
        placed = nn.ModuleList(layers)
        for position, layer in enumerate(placed):
            for module in layer.modules():
                if hasattr(module, "layer_idx"):
                    module.__dict__["layer_idx"] = position
        setattr(self._decoder(model), self.layer_list, placed)
        self._set_depth(model.config, indices)

    def _decoder(self, model: PreTrainedModel) -> nn.Module:
        return _module(model, self.decoder)

    def _set_depth(self, config: PretrainedConfig, indices: Sequence[int]) -> None:
        for name in self.per_layer_fields:
            values = getattr(config, name, None)
            if values is not None:
                setattr(config, name, [values[index] for index in indices])
        config.num_hidden_layers = len(indices)


_USUAL = ("model", "layers", "norm", "embed_tokens")
_FOUR_NORMS = Block(
    norms=(
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    )
)
ARCHITECTURES = (
    *(Architecture(name, *_USUAL) for name in ("llama", "mistral", "granite")),
    *(Architecture(name, *_USUAL, per_layer_fields=("layer_types",)) for name in ("qwen2", "qwen3")),
    Architecture("gemma", *_USUAL, norm_offset=1.0, embedding_grows_with_width=True),
    Architecture(
        "gemma2",
        *_USUAL,
        per_layer_fields=("layer_types",),
        block=_FOUR_NORMS,
        norm_offset=1.0,
        embedding_grows_with_width=True,
    ),
    Architecture(
        "phi3",
        *_USUAL,
        block=Block(
            queries="qkv_proj", keys="qkv_proj", values="qkv_proj", feed_forward_inputs=("gate_up_proj",)
        ),
    ),
    Architecture(
        "olmo2", *_USUAL, block=Block(norms=("post_attention_layernorm", "post_feedforward_layernorm"))
    ),
    Architecture("smollm3", *_USUAL, per_layer_fields=("layer_types", "no_rope_layers")),
    Architecture(
        "gemma3_text",
        "model",
        "layers",
        "norm",
        "embed_tokens",
        per_layer_fields=("layer_types",),
        block=Block(
            norms=(
                "input_layernorm",
                "post_attention_layernorm",
                "pre_feedforward_layernorm",
                "post_feedforward_layernorm",
            )
        ),
        norm_offset=1.0,
        embedding_grows_with_width=True,
    ),
    Architecture(
        "gpt2",
        "transformer",
        "h",
        "ln_f",
        "wte",
        block=Block(
            attention="attn",
            queries="c_attn",
            keys="c_attn",
            values="c_attn",
            attention_output="c_proj",
            feed_forward_inputs=("c_fc",),
            feed_forward_output="c_proj",
            feed_forward_size="n_inner",
            norms=("ln_1", "ln_2"),
        ),
    ),
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
