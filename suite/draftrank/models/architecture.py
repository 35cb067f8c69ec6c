"""A decoder taken apart: its embedding, its layers and their parts, its head; and put together with other layers.

Everything is found in the model itself (`models.discovery`, `models.layer_parts`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from draftrank.errors import BuildError
from draftrank.models.architecture_checks import require_equal, require_same_layers, short_logits
from draftrank.models.attention_windows import RECURRENT, layer_kinds
from draftrank.models.depth import set_depth
from draftrank.models.discovery import Names, NormRule, embedding_scale, find_names, norm_rule
from draftrank.models.forms import FEATURES
from draftrank.models.layer_parts import Block, parts_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class EarlierForwards(Protocol):
    """What a model remembers of forwards over the same tokens (training-time test)."""

    def next_forward(self, tokens: Tensor) -> dict[str, Any]:
        """What the decoder is called with beside the tokens."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Where the parts of one causal language model are, and what each of its layers consists of.

    It is found anew whenever it is asked for (`of`), since steps change models.
    """

    model_type: str
    """`model_type` of the configuration."""
    names: Names
    """Of its parts."""
    layer_parts: tuple[Block, ...]
    """See `blocks`; empty where the layers are not found."""
    norm_kind: Literal["rms", "layer"]
    """What its final norm is."""
    norm_offset: float
    """What a norm adds to its weight before it multiplies."""
    embedding_grows_with_width: bool
    """Whether embeddings are multiplied by the square root of the hidden size."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> Architecture:
        """Takes a model apart.

        Raises:
            BuildError: it is not a decoder-only language model.
        """
        config = model.config.get_text_config()
        names = find_names(model)
        decoder = model.get_submodule(names.decoder)
        layers = getattr(decoder, names.layer_list) if names.layer_list else ()
        hidden = int(config.hidden_size)
        final = getattr(decoder, names.final_norm) if names.final_norm else None
        rule = NormRule("layer", 0.0) if final is None else norm_rule(final, hidden)
        scale = embedding_scale(model.get_submodule(names.token_embedding))
        return cls(
            model_type=str(config.model_type),
            names=names,
            layer_parts=tuple(parts_of(layer, hidden) for layer in layers),
            norm_kind=rule.kind,
            norm_offset=rule.offset,
            embedding_grows_with_width=scale != 1.0 and abs(scale / hidden**0.5 - 1.0) < 1e-2,
        )

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The parts of each decoder layer.

        Raises:
            BuildError: the layers are not found.
        """
        _ = self.layers_name
        return self.layer_parts

    @property
    def block(self) -> Block:
        """The parts of every layer.

        Raises:
            BuildError: the layers differ, or are not found.
        """
        if len(set(self.blocks)) != 1:
            raise BuildError(
                f"the layers of {self.model_type} differ from one another: use steps that take whole layers"
            )
        return self.blocks[0]

    def layers(self, model: PreTrainedModel) -> nn.ModuleList:
        """The decoder layers, in order. Raises as `layers_name`."""
        layers = model.get_submodule(self.layers_name)
        assert isinstance(layers, nn.ModuleList)
        return layers

    @property
    def layers_name(self) -> str:
        """Name of the list of decoder layers in the model.

        Raises:
            BuildError: it is not found.
        """
        if not self.names.layer_list:
            raise BuildError(
                f"the layers of the architecture {self.model_type!r} are not found: no list of modules is as long as its "
                "configuration says; name it in `OVERRIDES` of draftrank/models/discovery.py, or use steps that need no "
                "layers, such as quantize (but for gptq), trim_vocabulary or distill"
            )
        return f"{self.names.decoder}.{self.names.layer_list}"

    def layer_name(self, index: int) -> str:
        """Name of a decoder layer in the model."""
        return f"{self.layers_name}.{index}"

    def linear_layers(self, model: PreTrainedModel) -> dict[str, nn.Module]:
        """The matrices of all decoder layers by their names in the model, in order; not the head."""
        names = [
            f"{self.layer_name(index)}.{part}"
            for index, block in enumerate(self.blocks)
            for part in (*block.attention_parts(), *block.feed_forward_parts())
        ]
        return {name: model.get_submodule(name) for name in names}

    def matrices_of_a_layer(self) -> tuple[str, ...]:
        """The names of the matrices that any layer has, below the layer."""
        parts = ((*block.attention_parts(), *block.feed_forward_parts()) for block in self.blocks)
        return tuple(dict.fromkeys(name for names in parts for name in names))

    def norm(self, model: PreTrainedModel) -> nn.Module:
        """The norm after the last layer.

        Raises:
            BuildError: there is none.
        """
        if not self.names.final_norm:
            raise BuildError(
                f"this {self.model_type} model has no norm after its last layer, whose output is its final hidden states: use "
                "steps and drafts that do not read these, such as distill, quantize or n-grams"
            )
        return self._decoder(model).get_submodule(self.names.final_norm)

    def embedding(self, model: PreTrainedModel) -> nn.Module:
        """The token embedding; its weight has shape [vocabulary, hidden]."""
        return _module(model, self.names.token_embedding)

    def head(self, model: PreTrainedModel) -> nn.Module:
        """The projection to the vocabulary; its weight may be the embedding's."""
        return _module(model, self.names.output_head)

    def hidden_states(
        self,
        model: PreTrainedModel,
        token_ids: Tensor,
        features: Tensor | None = None,
        ahead: EarlierForwards | None = None,
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

    def states_of_layers(
        self,
        model: PreTrainedModel,
        token_ids: Tensor,
        layers: Sequence[int],
        features: Tensor | None = None,
        ahead: EarlierForwards | None = None,
    ) -> Tensor:
        """Outputs of some layers, from 0, then final states after the norm: [batch, length] int64 to
        [batch, length, (layers + 1) · hidden]; for the other arguments see `hidden_states`.

        Raises:
            BuildError: a layer gives something else than one state of each token.
        """
        kept: dict[int, Tensor] = {}
        one_state = (*token_ids.shape, int(model.config.get_text_config().hidden_size))

        def keep(
            number: int, _module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]
        ) -> None:
            kept[number] = output[0] if isinstance(output, tuple) else output
            if kept[number].shape != one_state:
                raise BuildError(
                    f"the layers of {self.model_type} carry several states of each token, and an EAGLE-3 head reads one: use "
                    "a draft that reads tokens alone, such as a draft model or n-grams"
                )

        with ExitStack() as hooks:
            for number in layers:
                hooks.enter_context(self.layers(model)[number].register_forward_hook(partial(keep, number)))
            final = self.hidden_states(model, token_ids, features, ahead)
        return torch.cat([*(kept[number] for number in layers), final], -1) if layers else final

    def fused(self, model: PreTrainedModel, token_ids: Tensor, features: Tensor) -> Tensor:
        """What the first layer of a model reads that was made to read features; arguments as above."""
        fused: Tensor = model.get_submodule(FEATURES)(self.embedding(model)(token_ids), features)
        return fused

    def logits(
        self, model: PreTrainedModel, hidden: Tensor, head: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Logits [..., vocabulary] of final hidden states [..., hidden], through `head` if given.

        The model's own forward makes them, behind a decoder that gives these states: so it scales and caps them as it does.
        """
        states = hidden.reshape(1, -1, hidden.shape[-1])
        given = _shallow_copy(self._decoder(model))
        given.forward = lambda *_, **__: _Given(last_hidden_state=states)
        view = _with_part(model, self.names.decoder, given)
        if head is not None:
            view = _with_part(view, self.names.output_head, _Head(head, self.head(model)))
        ids = torch.zeros(states.shape[:2], dtype=torch.int64, device=states.device)
        logits: Tensor = view(input_ids=ids, use_cache=False).logits
        return logits.reshape(*hidden.shape[:-1], -1)

    def keep_layers(self, model: PreTrainedModel, indices: Sequence[int]) -> None:
        """Drops all layers but those of `indices`, ascending from 0, in place; the model's configuration follows.

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
        self.require_counting(model, indices)
        self.replace_layers(model, [layers[index] for index in indices], indices)

    def require_cut(
        self, model: PreTrainedModel, indices: Sequence[int], layers: Iterable[nn.Module] | None = None
    ) -> list[nn.Module]:
        """Refuses layers that would be others when a model of them is opened; arguments as for `view_of`.

        Returns:
            those that would be made, without weights.

        Raises:
            BuildError: the architecture's layers compute differently at another depth or index.
        """
        config = copy.deepcopy(model.config)
        set_depth(config.get_text_config(), indices)
        chosen = layers or [self.layers(model)[index] for index in indices]
        return require_same_layers(type(model), config, self.layers_name, chosen)

    def require_running(self, model: PreTrainedModel, indices: Sequence[int]) -> None:
        """Refuses layers without whose neighbours other parts of the model do not run.

        Raises:
            BuildError: those parts are made for all layers.
        """
        layers = self.layers(model)
        try:
            short_logits(self.view_of(model, [layers[index] for index in indices], indices))
        except BuildError as error:
            raise BuildError(
                f"other parts of this {self.model_type} model are made for all of its layers: use a step that keeps them, "
                "such as quantize or distill"
            ) from error

    def require_counting(self, model: PreTrainedModel, indices: Sequence[int]) -> None:
        """Refuses layers of which none counts the tokens it has read, where another one of the model does.

        Raises:
            BuildError: they are recurrent ones of a hybrid.
        """
        kinds = layer_kinds(model.config.get_text_config())
        counting = [index for index, kind in enumerate(kinds) if kind not in RECURRENT]
        if counting and not set(counting) & set(indices):
            raise BuildError(
                f"{self.model_type} counts tokens in its attention layers, and none is among the layers "
                f"{', '.join(map(str, indices))}: keep one of {', '.join(map(str, counting))}"
            )

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
        """A model that runs other layers between the same embedding and head, sharing every weight; `indices`: for each,
        the layer of the model whose configuration it has.

        It has no cache of its own numbering: feed it whole sequences, or the model's first layers."""
        config = copy.deepcopy(model.config)
        set_depth(config.get_text_config(), indices)
        decoder = _shallow_copy(self._decoder(model))
        decoder.config = config.get_text_config()
        setattr(decoder, self.names.layer_list, nn.ModuleList(layers))
        view = _with_part(model, self.names.decoder, decoder)
        view.config = config
        return view

    def replace_layers(
        self, model: PreTrainedModel, layers: Iterable[nn.Module], indices: Sequence[int]
    ) -> None:
        """Makes the model run these layers, in place; arguments as above.

        Raises:
            BuildError: the architecture's layers compute differently at another depth.
        """
        placed = nn.ModuleList(layers)
        expected = short_logits(self.view_of(model, placed, indices))
        for layer, made in zip(placed, self.require_cut(model, indices, placed), strict=True):
            for name, module in layer.named_modules():
                if hasattr(module, "layer_idx"):
                    module.__dict__["layer_idx"] = made.get_submodule(name).layer_idx
        setattr(self._decoder(model), self.names.layer_list, placed)
        set_depth(model.config.get_text_config(), indices)
        require_equal(expected, model, "moving its layers")

    def _decoder(self, model: PreTrainedModel) -> nn.Module:
        return _module(model, self.names.decoder)


class _Head(nn.Module):
    """A function of [positions, hidden] in the place of a head."""

    def __init__(self, head: Callable[[Tensor], Tensor], original: nn.Module) -> None:
        super().__init__()
        self._head = head
        self.weight = getattr(original, "weight", None)  # Mamba's code asks for its dtype

    def forward(self, hidden: Tensor) -> Tensor:
        """[1, positions, hidden] to [1, positions, vocabulary]."""
        return self._head(hidden[0])[None]


@dataclass
class _Given(ModelOutput):  # type: ignore[misc]  # transformers types it as Any
    """What a decoder gives, of which only the states are there: whatever else a family's model asks for is None."""

    last_hidden_state: Tensor | None = None

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _module(parent: nn.Module, name: str) -> nn.Module:
    return parent.get_submodule(name)


def _shallow_copy(module: nn.Module) -> Any:
    """The same parts in a new module: replacing one of them leaves the original alone."""
    twin = copy.copy(module)
    for registry in ("_modules", "_parameters", "_buffers"):
        twin.__dict__[registry] = dict(module.__dict__[registry])
    return twin


def _with_part(model: PreTrainedModel, name: str, part: nn.Module) -> PreTrainedModel:
    """A model with another module in a place, sharing all else; the original stays as it is."""
    view = _shallow_copy(model)
    parent = view
    *above, last = name.split(".")
    for step in above:
        child = _shallow_copy(parent.get_submodule(step))
        setattr(parent, step, child)
        parent = child
    setattr(parent, last, part)
    return view
