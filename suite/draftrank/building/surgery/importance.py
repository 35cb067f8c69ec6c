"""How much each channel of a model matters, by three measures.

- `magnitude`: the norm of all weights that make or read the channel; needs no text.
- `activation`: how large the channel is on the calibration text, times the norm of what reads it (the
  structured form of Wanda's product, Sun et al. 2023, arXiv:2306.11695; activations as in Minitron,
  Muralidharan et al. 2024, arXiv:2407.14679).
- `taylor`: the first-order change of the text's loss if the channel were zero, mean |x · dL/dx|
  (Molchanov et al. 2019, arXiv:1906.10771).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from draftrank.models.attention_windows import head_size
from draftrank.models.matrices import matrix

if TYPE_CHECKING:
    from draftrank.building.working_draft import WorkingDraft

Key = TypeVar("Key")
Importance = Literal["magnitude", "activation", "taylor"]
BATCH_SEQUENCES = 8
"""Sequences of calibration text that are run together."""
_GRADIENT_SEQUENCES = 1
"""The same where gradients are asked for, which keep the activations of all layers in memory."""


def feed_forward_scores(draft: WorkingDraft, importance: Importance, tokens: Tensor | None) -> list[Tensor]:
    """Score of each feed-forward channel: one float64 tensor [channels] per layer. `tokens` is int [sequences, length], not
    needed for `magnitude`."""
    shape = draft.architecture
    networks = [
        (block, layer.get_submodule(block.feed_forward))
        for block, layer in zip(shape.blocks, shape.layers(draft.model), strict=True)
    ]
    outputs = [network.get_submodule(block.feed_forward_output) for block, network in networks]
    if importance == "magnitude":
        scores = []
        for (block, network), output in zip(networks, outputs, strict=True):
            squares = _squares(output, along=0)
            for name in block.feed_forward_inputs:  # a fused matrix makes each channel twice
                squares = squares + _squares(network.get_submodule(name), along=1).view(-1, len(squares)).sum(
                    0
                )
            scores.append(squares.sqrt())
        return scores
    assert tokens is not None
    return _scores_of_inputs(draft, importance, outputs, tokens, unit=1)


def head_scores(draft: WorkingDraft, importance: Importance, tokens: Tensor | None) -> list[Tensor]:
    """Score of each query head: one float64 tensor [heads] per layer; arguments as above.

    With `magnitude`, a head's share of the keys and values that its group uses together is left out.
    """
    shape = draft.architecture
    parts = [
        (
            layer.get_submodule(f"{block.attention}.{block.queries}"),
            layer.get_submodule(f"{block.attention}.{block.attention_output}"),
        )
        for block, layer in zip(shape.blocks, shape.layers(draft.model), strict=True)
    ]
    outputs = [output for _, output in parts]
    size = head_size(draft.model.config)
    if importance == "magnitude":
        return [
            (_squares(output, along=0) + _squares(queries, along=1)).view(-1, size).sum(1).sqrt()
            for queries, output in parts
        ]
    assert tokens is not None
    return _scores_of_inputs(draft, importance, outputs, tokens, unit=size)


def hidden_scores(draft: WorkingDraft, importance: Importance, tokens: Tensor | None) -> Tensor:
    """Score of each channel of the residual stream, over all layers: float64 [hidden].

    `activation` is the mean size of the norms' outputs, as Minitron takes it: each norm counts alike.
    """
    shape, block = draft.architecture, draft.architecture.block
    layers = shape.layers(draft.model)
    if importance == "magnitude":
        squares = _embedding_squares(shape.embedding(draft.model))
        for layer in layers:
            for name in (*block.attention_parts(), *block.feed_forward_parts()):
                module = layer.get_submodule(name)
                writes = name.endswith((block.attention_output, block.feed_forward_output))
                squares = squares + _squares(module, along=1 if writes else 0)
        return squares.sqrt()
    assert tokens is not None
    if importance == "activation":
        readers = [layer.get_submodule(f"{block.attention}.{block.queries}") for layer in layers]
        readers += [
            layer.get_submodule(f"{block.feed_forward}.{block.feed_forward_inputs[0]}") for layer in layers
        ]
        sizes = _accumulate(draft, readers, tokens, lambda x, _: x.abs())
        return torch.stack(sizes).sum(0) / tokens.numel()
    changes = _accumulate(draft, list(layers), tokens, lambda x, g: (x * g).abs(), gradients=True)
    return torch.stack(changes).sum(0) / tokens.numel()


def _scores_of_inputs(
    draft: WorkingDraft, importance: Importance, readers: list[nn.Module], tokens: Tensor, unit: int
) -> list[Tensor]:
    """Scores of units of `unit` channels each, from what the readers read."""
    if importance == "taylor":
        totals = _accumulate(
            draft,
            readers,
            tokens,
            lambda x, g: (x * g).view(*x.shape[:-1], -1, unit).sum(-1).abs(),
            gradients=True,
        )
        return [total / tokens.numel() for total in totals]
    sizes = _accumulate(draft, readers, tokens, lambda x, _: x.abs())
    return [
        (size / tokens.numel() * _squares(reader, along=0).sqrt()).view(-1, unit).sum(1)
        for size, reader in zip(sizes, readers, strict=True)
    ]


def _accumulate(
    draft: WorkingDraft,
    modules: list[nn.Module],
    tokens: Tensor,
    measure: Callable[[Tensor, Tensor], Tensor],
    *,
    gradients: bool = False,
) -> list[Tensor]:
    """Sums a measure of each module's input x, and of the loss's gradient there, over all positions.

    The loss is the mean cross-entropy of each sequence's next tokens.
    """
    totals: list[Tensor | None] = [None] * len(modules)
    inputs: dict[int, Tensor] = {}

    def add(index: int, x: Tensor, gradient: Tensor) -> None:
        found = measure(x.detach().float(), gradient.float()).flatten(0, -2).sum(0, dtype=torch.float64).cpu()
        before = totals[index]
        totals[index] = found if before is None else before + found

    def keep(index: int, x: Tensor) -> None:
        if gradients:
            x.retain_grad()
            inputs[index] = x
        else:
            add(index, x, x)

    with watched_inputs(dict(enumerate(modules)), keep), torch.set_grad_enabled(gradients):
        for batch in torch.split(tokens, _GRADIENT_SEQUENCES if gradients else BATCH_SEQUENCES):
            ids = batch.to(draft.model.device, torch.int64)
            if not gradients:
                draft.architecture.hidden_states(draft.model, ids)
                continue
            with draft.architecture.embedding(draft.model).register_forward_hook(_open_graph):
                logits = draft.architecture.logits(
                    draft.model, draft.architecture.hidden_states(draft.model, ids)
                )
                loss = nn.functional.cross_entropy(
                    logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum"
                )
                (loss / (ids.shape[1] - 1)).backward()  # type: ignore[no-untyped-call]
            for index, x in inputs.items():
                assert x.grad is not None
                add(index, x, x.grad)
            inputs.clear()
    return [total for total in totals if total is not None]


@contextmanager
def watched_inputs(modules: Mapping[Key, nn.Module], seen: Callable[[Key, Tensor], None]) -> Iterator[None]:
    """Shows each module's input [sequences, length, channels] whenever it runs."""

    def observe(key: Key, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen(key, arguments[0])

    with ExitStack() as hooks:
        for key, module in modules.items():
            hooks.enter_context(module.register_forward_pre_hook(partial(observe, key)))
        yield


def _open_graph(_module: nn.Module, _arguments: tuple[Any, ...], output: Tensor) -> Tensor:
    """Behind the embedding: lets gradients reach all activations while no weight asks for one."""
    return output.requires_grad_()


def _squares(module: nn.Module, along: Literal[0, 1]) -> Tensor:
    """Sum of squared weights by input (`along` the outputs, 0) or by output (`along` the inputs, 1)."""
    return matrix(module).double().square().sum(along).cpu()


def _embedding_squares(embedding: nn.Module) -> Tensor:
    weight = embedding.weight
    assert isinstance(weight, Tensor)
    return weight.detach().double().square().sum(0).cpu()
