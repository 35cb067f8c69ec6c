"""Narrower models: fewer feed-forward channels, fewer attention heads, a thinner residual stream."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from draftrank.building.surgery.fitting import require_channels, require_heads, require_hidden
from draftrank.building.surgery.importance import (
    Importance,
    feed_forward_scores,
    head_scores,
    hidden_scores,
)
from draftrank.errors import BuildError
from draftrank.models.architecture_checks import logits_without, require_equal
from draftrank.models.attention_windows import head_size
from draftrank.models.matrices import matrix
from draftrank.models.resizing import Cut, matrix_cuts, resized

if TYPE_CHECKING:
    from collections.abc import Iterator

    from draftrank.building.working_draft import WorkingDraft


_NO_EPSILON = 1e-20
"""In the place of a norm's epsilon, so that a state of zeros stays one."""


def check_feed_forward(draft: WorkingDraft, keep: int) -> str:
    """Refuses what `prune_feed_forward` cannot do.

    Returns:
        the configuration's field of how many channels a layer has.

    Raises:
        BuildError: there are fewer channels; see also `require_channels`.
    """
    shape, model = draft.architecture, draft.model
    field = require_channels(shape, model)
    output = model.get_submodule(f"{shape.layer_name(0)}.{shape.blocks[0].channel_parts()[-1]}")
    _require(keep, matrix(output).shape[1], "feed-forward channels per layer", "keep_channels")
    return field


def check_heads(
    draft: WorkingDraft, keep_groups: int | None, keep_heads_per_group: int | None
) -> tuple[int, int]:
    """The same for `prune_heads`.

    Returns:
        query groups of a layer, and query heads of a group.

    Raises:
        BuildError: there are fewer; see also `require_heads`.
    """
    require_heads(draft.architecture, draft.model)
    config = draft.model.config
    groups = int(config.num_key_value_heads)
    per_group = int(config.num_attention_heads) // groups
    _require(keep_groups or groups, groups, "query groups per layer", "keep_groups")
    _require(keep_heads_per_group or per_group, per_group, "query heads per group", "keep_heads_per_group")
    return groups, per_group


def check_hidden(draft: WorkingDraft, keep: int) -> None:
    """The same for `prune_hidden`.

    Raises:
        BuildError: there are fewer channels, or the layers differ; see also `require_hidden`.
    """
    require_hidden(draft.architecture, draft.model)
    _ = draft.architecture.block
    _require(keep, int(draft.model.config.hidden_size), "hidden channels", "keep_channels")


def prune_feed_forward(draft: WorkingDraft, keep: int, importance: Importance, tokens: Tensor | None) -> None:
    """Keeps the `keep` most important channels of each layer's feed-forward network, in place. `tokens`: calibration text,
    int [sequences, length]; None for `magnitude`.

    Raises:
        BuildError: there are fewer channels.
    """
    shape = draft.architecture
    size = check_feed_forward(draft, keep)
    scores = feed_forward_scores(draft, importance, tokens)
    cuts: list[Cut] = []
    dropped: dict[str, list[int]] = {}
    for index, score in enumerate(scores):
        kept = _best(score, keep, draft)
        block = shape.blocks[index]
        made = torch.cat([kept, kept + len(score)]) if block.gates == "fused" else kept
        *inputs, output = (f"{shape.layer_name(index)}.{name}" for name in block.channel_parts())
        for name in inputs:
            cuts += matrix_cuts(draft.model, name, "outputs", made)
        cuts += matrix_cuts(draft.model, output, "inputs", kept)
        dropped[output] = [channel for channel in range(len(score)) if channel not in set(kept.tolist())]
    expected = logits_without(draft.model, dropped)
    draft.model = resized(draft.model, {size: keep}, cuts)
    require_equal(expected, draft.model, "removing feed-forward channels")


def prune_heads(
    draft: WorkingDraft,
    keep_groups: int | None,
    keep_heads_per_group: int | None,
    importance: Importance,
    tokens: Tensor | None,
) -> None:
    """Keeps the most important query groups of each layer, and of each the most important heads; None: all. For the text
    see `prune_feed_forward`.

    A group is one head of keys and values with all query heads that read it; its score is their sum.

    Raises:
        BuildError: there are fewer, or the architecture cannot say how many heads it has.
    """
    shape, config = draft.architecture, draft.model.config
    groups, per_group = check_heads(draft, keep_groups, keep_heads_per_group)
    stay, stay_each = keep_groups or groups, keep_heads_per_group or per_group
    size = head_size(config)
    cuts: list[Cut] = []
    dropped: dict[str, list[int]] = {}
    for index, score in enumerate(head_scores(draft, importance, tokens)):
        grouped = score.view(groups, per_group)
        kept_groups = _best(grouped.sum(1), stay, draft)
        heads = torch.cat(
            [group * per_group + _best(grouped[group], stay_each, draft) for group in kept_groups]
        )
        query_channels, value_channels = _channels(heads, size), _channels(kept_groups, size)
        block = shape.blocks[index]
        inside = f"{shape.layer_name(index)}.{block.attention}"
        cuts += matrix_cuts(draft.model, f"{inside}.{block.queries}", "outputs", query_channels)
        for name in (block.keys, block.values):
            cuts += matrix_cuts(draft.model, f"{inside}.{name}", "outputs", value_channels)
        output = f"{inside}.{block.attention_output}"
        cuts += matrix_cuts(draft.model, output, "inputs", query_channels)
        chosen = set(query_channels.tolist())
        dropped[output] = [channel for channel in range(groups * per_group * size) if channel not in chosen]
    expected = logits_without(draft.model, dropped)
    sizes = {"num_attention_heads": stay * stay_each, "num_key_value_heads": stay, "head_dim": size}
    draft.model = resized(draft.model, sizes, cuts)
    require_equal(expected, draft.model, "removing heads")


def prune_hidden(draft: WorkingDraft, keep: int, importance: Importance, tokens: Tensor | None) -> None:
    """Keeps the `keep` most important channels of the residual stream, the same in all layers, in place. For the text see
    `prune_feed_forward`.

    Norms divide by the mean square over all channels; with fewer of them the same stream would come out
    smaller, so their weights are enlarged: where the dropped channels were zero, nothing changes.

    Raises:
        BuildError: there are fewer channels, or the architecture ties its width to something else.
    """
    shape, block, config = draft.architecture, draft.architecture.block, draft.model.config
    check_hidden(draft, keep)
    width = int(config.hidden_size)
    kept = _best(hidden_scores(draft, importance, tokens), keep, draft)
    dropped = [channel for channel in range(width) if channel not in set(kept.tolist())]
    unmade = {shape.names.token_embedding: dropped}
    cuts = [Cut(f"{shape.names.token_embedding}.weight", 1, kept)]
    cuts += matrix_cuts(draft.model, shape.names.output_head, "inputs", kept)
    cuts.append(Cut(f"{shape.names.decoder}.{shape.names.final_norm}.weight", 0, kept))
    for index in range(len(shape.layers(draft.model))):
        layer = shape.layer_name(index)
        cuts += [Cut(f"{layer}.{name}.weight", 0, kept) for name in block.norms]
        for name in (*block.attention_parts(), *block.feed_forward_parts()):
            writes = name.endswith((block.attention_output, block.feed_forward_output))
            if writes:
                unmade[f"{layer}.{name}"] = dropped
            cuts += matrix_cuts(draft.model, f"{layer}.{name}", "outputs" if writes else "inputs", kept)
    with _without_epsilon(draft):
        expected = logits_without(draft.model, {}, unmade)
    draft.model = resized(draft.model, {"hidden_size": keep, "head_dim": head_size(config)}, cuts)
    _rescale(draft, math.sqrt(width / keep))
    with _without_epsilon(draft):
        require_equal(expected, draft.model, "removing hidden channels")


@contextmanager
def _without_epsilon(draft: WorkingDraft) -> Iterator[None]:
    """Lets the norms of the stream divide by the root of the mean square alone: what they add to it, so that it is never
    zero, weighs more in a narrower one."""
    shape, model = draft.architecture, draft.model
    norms = [layer.get_submodule(name) for layer in shape.layers(model) for name in shape.block.norms]
    added = [
        (norm, name, value)
        for norm in (*norms, shape.norm(model))
        for name, value in vars(norm).items()
        if "eps" in name and isinstance(value, float)
    ]
    for norm, name, _ in added:
        setattr(norm, name, _NO_EPSILON)
    try:
        yield
    finally:
        for norm, name, value in added:
            setattr(norm, name, value)


@torch.no_grad()
def _rescale(draft: WorkingDraft, factor: float) -> None:
    """Makes up for a width that shrank by the square of `factor`."""
    shape, block, model = draft.architecture, draft.architecture.block, draft.model
    norms = [layer.get_submodule(name) for layer in shape.layers(model) for name in block.norms]
    for norm in norms:
        _scale_norm(norm, factor, shape.norm_offset)
    final = shape.norm(model)
    _scale_norm(final, factor, shape.norm_offset)
    if shape.embedding_grows_with_width:
        embedding = shape.embedding(model)
        assert isinstance(embedding.weight, Tensor)
        embedding.weight.mul_(factor)
        if shape.head(model).weight is embedding.weight:  # the logits must not grow with it
            _scale_norm(final, 1 / factor, shape.norm_offset)


def _scale_norm(norm: nn.Module, factor: float, offset: float) -> None:
    weight = norm.weight
    assert isinstance(weight, Tensor)
    weight.add_(offset).mul_(factor).sub_(offset)


def _best(scores: Tensor, count: int, draft: WorkingDraft) -> Tensor:
    """Indices of the largest scores, ascending; the earlier of equals."""
    order = torch.sort(scores, descending=True, stable=True).indices
    return order[:count].sort().values.to(draft.model.device)


def _channels(heads: Tensor, size: int) -> Tensor:
    return (heads[:, None] * size + torch.arange(size, device=heads.device)).flatten()


def _require(wanted: int, there: int, what: str, field: str) -> None:
    if wanted > there:
        raise BuildError(
            f"the model has {there} {what}, so {wanted} cannot be kept: write at most {there} in {field}"
        )
