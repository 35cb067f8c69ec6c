"""What was found of a model or done to it, compared with what the model computes."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from draftrank.errors import BuildError
from draftrank.models.attention_windows import context_window
from draftrank.models.quiet import quiet_transformers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from transformers import PretrainedConfig, PreTrainedModel

_PROBE_TOKENS = 12
"""Tokens of a forward that is compared: short, and longer than the kernels of convolutions."""
MAX_DIFFERENCE = 1e-3
"""Largest difference of two logits, as a share of the largest logit, that counts as rounding."""
_FEW_TOKENS = 4
"""The same of a forward that is repeated for every layer."""
_SAME = 1e-5
"""Difference of two logits that another row of a batch may have, as a share of the largest logit."""
_OF_ITS_PLACE = frozenset({"layer_idx", "layer_id", "training", "block_idx", "name"})
"""Attributes of modules that say where a layer is and not what it is."""


@torch.inference_mode()
def short_logits(model: PreTrainedModel) -> Tensor:
    """Logits of a few tokens, fp32 [tokens, vocabulary].

    Raises:
        BuildError: the forward fails.
    """
    try:
        logits: Tensor = model(input_ids=_probe(model), use_cache=False).logits[0]
    except Exception as error:  # a forward of a family's own may raise what it likes
        raise BuildError(
            f"this {model.config.model_type} model does not run with these layers ({type(error).__name__}: {error}): use a "
            "step that keeps all of them, such as quantize or distill"
        ) from error
    return logits.float()


def _probe(model: PreTrainedModel) -> Tensor:
    """A few tokens, int64 [1, tokens]."""
    device = next(model.parameters()).device
    rows = int(model.config.get_text_config().vocab_size)
    count = min(_PROBE_TOKENS, context_window(model.config) or _PROBE_TOKENS)
    return (torch.arange(count, device=device)[None] * 7 + 3) % rows


def logits_without(
    model: PreTrainedModel,
    dropped: Mapping[str, Sequence[int]],
    unmade: Mapping[str, Sequence[int]] | None = None,
) -> Tensor:
    """`short_logits` while some inputs of matrices, given by the matrices' names, and some outputs (`unmade`) are zero; the
    model stays as it is."""

    def cleared(channels: Sequence[int], states: Tensor) -> Tensor:
        states = states.clone()
        states[..., list(channels)] = 0.0
        return states

    def clear(
        channels: Sequence[int], _module: nn.Module, arguments: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        return (cleared(channels, arguments[0]), *arguments[1:])

    with ExitStack() as hooks:
        for name, channels in dropped.items():
            reader = model.get_submodule(name)
            hooks.enter_context(reader.register_forward_pre_hook(partial(clear, channels)))
        for name, channels in (unmade or {}).items():
            maker = model.get_submodule(name)
            hooks.enter_context(
                maker.register_forward_hook(lambda _m, _a, made, channels=channels: cleared(channels, made))
            )
        return short_logits(model)


@torch.inference_mode()
def require_every_layer(model: PreTrainedModel, name: str) -> None:
    """Refuses a list of layers, by its name in the model, of which one changes nothing where it is replaced by the identity: row
    i + 1 of a batch passes layer i by. A layer that is the identity by its weights is none of those.

    Raises:
        BuildError: the list is not that of the decoder's layers.
    """
    layers = list(model.get_submodule(name))
    rows = len(layers) + 1
    idle = set()

    def pass_by(
        row: int, _module: nn.Module, given: tuple[Tensor, ...], named: dict[str, Tensor], output: Any
    ) -> None:
        states = output[0] if isinstance(output, tuple) else output
        read = given[0] if given else named["hidden_states"]
        batch = states.shape.index(rows)  # not the first dimension where a layer carries several streams
        made, passed = states.select(batch, row), read.select(batch, row)
        if torch.equal(made, passed):
            idle.add(row)
        made.copy_(passed)

    with ExitStack() as hooks:
        for row, layer in enumerate(layers, start=1):
            hooks.enter_context(layer.register_forward_hook(partial(pass_by, row), with_kwargs=True))
        output = model(input_ids=_probe(model)[:, :_FEW_TOKENS].expand(rows, -1), use_cache=False)
    logits = output.logits[:, -1].float().nan_to_num(0.0, 0.0, 0.0)  # tokens that a trimmed head leaves out
    moved = (logits - logits[:1]).abs().amax(1)
    still = [row for row in range(1, rows) if row not in idle and moved[row] <= _SAME * logits.abs().max()]
    if still:
        raise BuildError(
            f"{name} of this {model.config.model_type} model is not the list of its decoder layers, since the logits are the same "
            f"without number {still[0] - 1}: name it in `OVERRIDES` of draftrank/models/discovery.py, or use steps that cut "
            "no layers"
        )


def alike(expected: Tensor, found: Tensor) -> bool:
    """Whether logits differ by rounding alone; tokens that a trimmed head leaves out are minus infinity in both."""
    largest = float(expected[expected.isfinite()].abs().max().clamp(min=1e-6))
    same = found.shape == expected.shape and torch.equal(found.isfinite(), expected.isfinite())
    return same and float((found - expected).nan_to_num(0.0).abs().max()) <= MAX_DIFFERENCE * largest


def require_equal(expected: Tensor, model: PreTrainedModel, what: str) -> None:
    """Compares a model with `short_logits` that it must give too; `what` was done to it, for the message.

    Raises:
        BuildError: they differ by more than rounding.
    """
    if not alike(expected, short_logits(model)):
        raise BuildError(
            f"{what} changes what the others of this {model.config.model_type} model compute, so they depend on more "
            "than this step knows of: use steps that leave layers as they are, such as quantize or distill"
        )


def require_same_layers(
    family: type[PreTrainedModel], config: PretrainedConfig, name: str, layers: Iterable[nn.Module]
) -> list[nn.Module]:
    """Compares layers with those that a configuration makes, without weights, in a model of this class whose list of layers
    has this name.

    Returns:
        those that it makes.

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
    return made


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
