"""Which models can be made narrower, and in which direction; what cannot is refused before any work."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING

import torch

from draftrank.errors import BuildError
from draftrank.models.architecture_checks import alike, logits_without
from draftrank.models.attention_windows import head_size
from draftrank.models.forms import weights_read_directly
from draftrank.models.matrices import matrix
from draftrank.models.quiet import quiet_transformers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from draftrank.building.working_draft import WorkingDraft
    from draftrank.models.architecture import Architecture
    from draftrank.models.layer_parts import Block

_SIZE_NAMES = re.compile(r"inter|ffn|inner|d_ff|mlp")
"""In the names of configurations' fields for the size of the feed-forward network."""
_INSTEAD = "use drop_layers, quantize or distill"


def require_channels(shape: Architecture, model: PreTrainedModel) -> str:
    """The configuration's field of how many feed-forward channels a layer has.

    Raises:
        BuildError: there is none, or some layer's network is not a dense one.
    """
    kind = shape.model_type
    if any(block.experts for block in shape.blocks):
        raise BuildError(
            f"feed-forward layers of {kind} are mixtures of experts, and fewer channels of an expert would need another "
            f"router: {_INSTEAD}"
        )
    if not all(block.feed_forward_output for block in shape.blocks):
        raise BuildError(f"some layers of {kind} have no feed-forward network: {_INSTEAD}")
    channels = {
        matrix(layer.get_submodule(block.channel_parts()[-1])).shape[1]
        for block, layer in zip(shape.blocks, shape.layers(model), strict=True)
    }
    config = model.config
    if any(
        _has_weights_of_channels(block, layer)
        for block, layer in zip(shape.blocks, shape.layers(model), strict=True)
    ):
        raise BuildError(
            f"the feed-forward networks of {kind} norm their channels, so fewer of them compute something else: {_INSTEAD}"
        )
    if len(channels) > 1:
        raise BuildError(f"the feed-forward networks of this {kind} model differ in size: {_INSTEAD}")
    field = _field_of(config, channels.pop())
    if field is None:
        raise BuildError(
            f"{kind} derives the size of its feed-forward network from other sizes, so no configuration has fewer channels: "
            f"{_INSTEAD}"
        )
    return field


def require_heads(shape: Architecture, model: PreTrainedModel) -> None:
    """Refuses models whose attention heads cannot be taken out.

    Raises:
        BuildError: their queries, keys and values are not separate matrices of whole heads.
    """
    kind, config = shape.model_type, model.config.get_text_config()
    reasons = {
        "fused": "makes queries, keys and values by one matrix",
        "latent": "makes keys and values of all heads from one latent vector (MLA)",
        "other": "has layers that are not attention over a KV cache",
        "none": "has layers without attention",
    }
    for mixing, reason in reasons.items():
        if any(block.mixing == mixing for block in shape.blocks):
            raise BuildError(
                f"{kind} {reason}, so there are no heads to take out: use prune_ffn or drop_layers"
            )
    if not hasattr(config, "head_dim"):
        raise BuildError(
            f"{kind} derives the size of a head from the number of heads, so it has no model with fewer of them: use "
            "prune_ffn or drop_layers"
        )
    heads = int(config.num_attention_heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    size = head_size(config)
    for block, layer in zip(shape.blocks, shape.layers(model), strict=True):
        attention = layer.get_submodule(block.attention)
        found = [
            matrix(attention.get_submodule(name)).shape[0]
            for name in (block.queries, block.keys, block.values)
        ]
        others = {
            parameter.numel()
            for name, parameter in attention.named_parameters()
            if name.split(".")[0] not in block.attention_matrices
        }
        whole = found == [heads * size, groups * size, groups * size] and others <= {size}
        if not whole or len(block.attention_matrices) != 4:
            raise BuildError(
                f"the attention of {kind} has more than queries, keys and values of each head: use prune_ffn or drop_layers"
            )
    _require_head_size(
        model,
        f"{shape.layer_name(0)}.{shape.blocks[0].attention}.{shape.blocks[0].attention_output}",
        heads,
        groups,
        size,
    )


def require_independent_heads(shape: Architecture, model: PreTrainedModel) -> None:
    """Refuses models in which the values of one head reach more than its own part of what the attention's output matrix reads;
    of those that `require_heads` lets pass.

    Raises:
        BuildError: without a head, others would compute something else.
    """
    config = model.config.get_text_config()
    heads = int(config.num_attention_heads)
    each = heads // int(getattr(config, "num_key_value_heads", None) or heads)
    size = head_size(config)
    inside = [f"{shape.layer_name(index)}.{block.attention}" for index, block in enumerate(shape.blocks)]
    outputs = [f"{name}.{block.attention_output}" for name, block in zip(inside, shape.blocks, strict=True)]
    values = [f"{name}.{block.values}" for name, block in zip(inside, shape.blocks, strict=True)]
    unread = logits_without(model, dict.fromkeys(outputs, range(each * size)))
    unmade = logits_without(model, {}, dict.fromkeys(values, range(size)))
    if not alike(unread, unmade):
        raise BuildError(
            f"the heads of {shape.model_type} read one another's values, so others would compute something else without one: "
            "use prune_ffn or drop_layers"
        )


def _require_head_size(model: PreTrainedModel, output: str, heads: int, groups: int, size: int) -> None:
    """Refuses architectures whose model of fewer heads has heads of another size, as the attention's `output` of a layer
    tells."""
    config = copy.deepcopy(model.config)
    fewer = groups if groups < heads else 1
    for name, value in (("num_attention_heads", fewer), ("num_key_value_heads", fewer), ("head_dim", size)):
        setattr(config.get_text_config(), name, value)
    with quiet_transformers(), torch.device("meta"):
        twin = type(model)(config)
    if matrix(twin.get_submodule(output)).shape[1] != fewer * size:
        raise BuildError(
            f"{config.model_type} derives the size of its attention from the hidden size, so it has no model with fewer "
            "heads: use prune_ffn or drop_layers"
        )


def require_hidden(shape: Architecture, model: PreTrainedModel) -> None:
    """Refuses models whose residual stream cannot be made thinner.

    Raises:
        BuildError: a part of the model would compute something else.
    """
    kind = shape.model_type
    require_channels(shape, model)
    require_heads(shape, model)
    if any(block.other_matrices for block in shape.blocks):
        raise BuildError(
            f"the layers of {kind} have matrices beside those of attention and feed-forward network, whose sizes a narrower "
            "stream would change too: use prune_ffn or drop_layers"
        )
    if shape.norm_kind != "rms":
        raise BuildError(
            f"{kind} centres its norms, so a narrower stream computes something else: use prune_ffn or drop_layers"
        )


def require_depth(draft: WorkingDraft, keep: int | Sequence[int]) -> None:
    """Refuses models of which a cut is known to fail, by the layers that stay; or how many, where it is not known yet
    which.

    Raises:
        BuildError: no configuration describes them, they count no tokens, or the rest of the model needs all layers.
    """
    shape = draft.architecture
    depth = len(shape.blocks)
    wanted = [index for index in (range(keep) if isinstance(keep, int) else keep) if index < depth]
    shape.require_cut(draft.model, wanted)
    if not isinstance(keep, int):
        shape.require_counting(draft.model, wanted)
    shape.require_running(draft.model, wanted)


def require_alike(draft: WorkingDraft) -> None:
    """Refuses models whose layers have different parameters, so that one cannot have the weights of another.

    Raises:
        BuildError: they have.
    """
    shape = draft.architecture
    kinds = {
        tuple((name, tuple(parameter.shape)) for name, parameter in layer.named_parameters())
        for layer in shape.layers(draft.model)
    }
    if len(kinds) > 1:
        raise BuildError(
            f"the layers of {shape.model_type} are of different kinds, so one cannot have the weights of another: use "
            "drop_layers"
        )


def _has_weights_of_channels(block: Block, layer: nn.Module) -> bool:
    """Whether a dense feed-forward network has parameters of its channels beside its matrices."""
    if not block.feed_forward:
        return False
    network = layer.get_submodule(block.feed_forward)
    matrices = (*block.feed_forward_inputs, block.feed_forward_output)
    size = matrix(network.get_submodule(block.feed_forward_output)).shape[1]
    return any(
        size in parameter.shape and name.rpartition(".")[0] not in matrices
        for name, parameter in network.named_parameters()
    )


def require_called_head(draft: WorkingDraft) -> None:
    """Refuses models that look at the one matrix of their head.

    Raises:
        BuildError: two matrices cannot take its place.
    """
    shape = draft.architecture
    if shape.head(draft.model) in weights_read_directly(draft.model):
        raise BuildError(
            f"the code of {shape.model_type} reads the weight of its head by itself, so the head must stay one matrix: use "
            "trim_vocabulary or quantize"
        )


def _field_of(config: PretrainedConfig, size: int) -> str | None:
    """The field that holds the size of the feed-forward network; GPT-2's holds nothing for four times the hidden size."""
    held = [
        name
        for name, value in vars(config).items()
        if value == size and type(value) is int and _SIZE_NAMES.search(name)
    ]
    if not held and getattr(config, "n_inner", 0) is None:
        return "n_inner"
    return held[0] if held else None
