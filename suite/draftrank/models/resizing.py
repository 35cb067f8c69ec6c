"""Makes a really smaller model out of chosen channels of a larger one.

Nothing is masked: a new model of the smaller configuration receives the kept rows and columns, so that
what is saved is an ordinary folder and what is measured is really less work.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from draftrank.errors import BuildError
from draftrank.models.matrices import Side, axis
from draftrank.models.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Cut:
    """Which entries of one parameter stay."""

    parameter: str
    """Name in the model."""
    axis: int
    """Of the parameter as it is stored."""
    kept: Tensor
    """int64 [kept entries], ascending."""


def matrix_cuts(model: PreTrainedModel, name: str, side: Side, kept: Tensor) -> list[Cut]:
    """Keeps some outputs of a linear layer, with their bias, or some of its inputs."""
    module = model.get_submodule(name)
    cuts = [Cut(f"{name}.weight", axis(module, side), kept)]
    if side == "outputs" and isinstance(module.bias, Tensor):
        cuts.append(Cut(f"{name}.bias", 0, kept))
    return cuts


def resized(model: PreTrainedModel, sizes: Mapping[str, int], cuts: Iterable[Cut]) -> PreTrainedModel:
    """A new model with other sizes in its configuration and the kept entries of each cut parameter.

    Raises:
        BuildError: parts of the model are no longer those of its architecture, or what is kept does not
            fit the sizes.
    """
    config = copy.deepcopy(model.config)
    for name, value in sizes.items():
        setattr(config, name, value)
    state = model.state_dict()
    for cut in cuts:
        state[cut.parameter] = state[cut.parameter].index_select(cut.axis, cut.kept)
    try:
        config.validate()
        with quiet_transformers():
            twin = type(model)(config)
        twin.load_state_dict(state, strict=True)
    except (StrictDataclassError, RuntimeError, ValueError) as error:
        cause = error.__cause__ or error
        raise BuildError(f"the {config.model_type} architecture has no such model: {cause}") from error
    if model.generation_config is not None:
        twin.generation_config = copy.deepcopy(model.generation_config)
    return twin.to(model.device).eval().requires_grad_(False)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts another module in the place of the named one."""
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)
