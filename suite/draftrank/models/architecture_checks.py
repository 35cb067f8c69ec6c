"""What was found of a model or done to it, compared with what the model computes."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from draftrank.errors import BuildError
from draftrank.models.quiet import quiet_transformers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from transformers import PretrainedConfig, PreTrainedModel

_PROBE_TOKENS = 12
"""Tokens of a forward that is compared: short, and longer than the kernels of convolutions."""
MAX_DIFFERENCE = 1e-3
"""Largest difference of two logits, as a share of the largest logit, that counts as rounding."""
_OF_ITS_PLACE = frozenset({"layer_idx", "layer_id", "training", "block_idx", "name"})
"""Attributes of modules that say where a layer is and not what it is."""


@torch.inference_mode()
def short_logits(model: PreTrainedModel) -> Tensor:
    """Logits of a few tokens, fp32 [tokens, vocabulary].

    Raises:
        BuildError: the forward fails.
    """
    rows = int(model.config.get_text_config().vocab_size)
    device = next(model.parameters()).device
    ids = (torch.arange(_PROBE_TOKENS, device=device) * 7 + 3) % rows
    try:
        logits: Tensor = model(input_ids=ids[None], use_cache=False).logits[0]
    except Exception as error:  # a forward of a family's own may raise what it likes
        raise BuildError(
            f"this {model.config.model_type} model does not run with these layers ({type(error).__name__}: {error}): use a "
            "step that keeps all of them, such as quantize or distill"
        ) from error
    return logits.float()


def logits_without(model: PreTrainedModel, dropped: Mapping[str, Sequence[int]]) -> Tensor:
    """`short_logits` while some inputs of matrices, given by the matrices' names, are zero; the model stays as it is."""

    def clear(
        channels: Sequence[int], _module: nn.Module, arguments: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        read = arguments[0].clone()
        read[..., list(channels)] = 0.0
        return (read, *arguments[1:])

    with ExitStack() as hooks:
        for name, channels in dropped.items():
            reader = model.get_submodule(name)
            hooks.enter_context(reader.register_forward_pre_hook(partial(clear, channels)))
        return short_logits(model)


def require_equal(expected: Tensor, model: PreTrainedModel, what: str) -> None:
    """Compares a model with `short_logits` that it must give too; `what` was done to it, for the message.

    Raises:
        BuildError: they differ by more than rounding.
    """
    found = short_logits(model)
    largest = float(expected[expected.isfinite()].abs().max().clamp(min=1e-6))
    same = found.shape == expected.shape and torch.equal(found.isfinite(), expected.isfinite())
    # Tokens that a trimmed head leaves out are minus infinity in both.
    if not same or float((found - expected).nan_to_num(0.0).abs().max()) > MAX_DIFFERENCE * largest:
        raise BuildError(
            f"{what} changes what the others of this {model.config.model_type} model compute, so they depend on more "
            "than this step knows of: use steps that leave layers as they are, such as quantize or distill"
        )


def require_same_layers(
    family: type[PreTrainedModel], config: PretrainedConfig, name: str, layers: Iterable[nn.Module]
) -> None:
    """Compares layers with those that a configuration makes, without weights, in a model of this class whose list of layers
    has this name.

    Raises:
        BuildError: a layer would be of another kind when the model is opened again.
    """
    kind = config.get_text_config().model_type
    try:
        with quiet_transformers(), torch.device("meta"):
            twin = family(config)
    except (
        Exception
    ) as error:  # a configuration is validated by code of its family, which raises what it likes
        raise BuildError(f"{kind} has no model of these layers: {error}") from error
    made = list(twin.get_submodule(name))
    for index, (layer, other) in enumerate(zip(layers, made, strict=True)):
        ours, theirs = _signature(layer), _signature(other)
        # an attribute that only one of the two has is a state that a forward has left
        if ours.keys() != theirs.keys() or any(
            ours[key][:2] != theirs[key][:2]
            or any(value != theirs[key][2].get(name, value) for name, value in ours[key][2].items())
            for key in ours
        ):
            raise BuildError(
                f"{kind} derives what a layer computes from its index and the number of layers, and the layer that would "
                f"become number {index} would be another one: choose layers that keep the pattern, such as the first ones, "
                "or use a step that keeps all of them, such as quantize or distill"
            )


def _signature(layer: nn.Module) -> dict[str, tuple[str, dict[str, Any], dict[str, Any]]]:
    """What a layer is: its modules, the shapes of their parameters and their plain attributes."""
    found = {}
    for name, module in layer.named_modules():
        plain = {
            key: value
            for key, value in vars(module).items()
            if key not in _OF_ITS_PLACE
            and not key.startswith("_")
            and (value is None or isinstance(value, bool | int | float | str))
        }
        shapes = {key: tuple(one.shape) for key, one in module._parameters.items() if one is not None}
        found[name] = (type(module).__name__, shapes, plain)
    return found
