"""Where a decoder's parts are: found in the module tree of any decoder-only language model that transformers opens."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from draftrank.errors import BuildError
from draftrank.models.depth import sublayers
from draftrank.models.layer_parts import is_norm

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Names:
    """Names of a causal language model's parts."""

    decoder: str
    """The module below the head, in the model: embedding, layers and final norm."""
    layer_list: str
    """In the decoder: the decoder layers; empty: they are not found."""
    final_norm: str
    """In the decoder: the norm after the last layer; empty: there is none."""
    token_embedding: str
    """In the model: the token embedding."""
    output_head: str
    """In the model: the projection to the vocabulary."""


OVERRIDES: dict[str, dict[str, str]] = {}
"""By `model_type`: fields of `Names` that are not found, as in
`"my_family": {"decoder": "transformer", "layer_list": "stages", "final_norm": "last_norm"}`."""


def find_names(model: PreTrainedModel) -> Names:
    """Names of a model's parts.

    Raises:
        BuildError: it is not a decoder, or a part is not found that every model has; only some steps need the layers.
    """
    config = model.config.get_text_config()
    kind = str(config.model_type)
    if getattr(model.config, "is_encoder_decoder", False):
        raise BuildError(f"{kind} has an encoder beside its decoder: use a decoder-only language model")
    known = OVERRIDES.get(kind, {})
    embedding, head = _embedding(model), _head(model)
    if embedding is None or head is None:
        missing = "no token embedding" if embedding is None else "no head over a vocabulary"
        raise BuildError(f"the {kind} model has {missing}: use a causal language model")
    layers = _layer_list(model)
    if "layer_list" in known and "decoder" in known:
        layers = f"{known['decoder']}.{known['layer_list']}"
    if layers is None or "." not in layers:
        layers = f"{known.get('decoder', model.base_model_prefix)}."
    decoder, _, layer_list = layers.rpartition(".")
    if not decoder or decoder not in dict(model.named_modules()):
        raise BuildError(f"the {kind} model has no decoder below its head: use a causal language model")
    found = {
        "decoder": decoder,
        "layer_list": layer_list,
        "final_norm": _final_norm(model.get_submodule(decoder), int(config.hidden_size)),
        "token_embedding": embedding,
        "output_head": head,
    }
    return Names(**{**found, **known})


@dataclass(frozen=True, slots=True)
class NormRule:
    """How a norm computes, whatever its weights are."""

    kind: Literal["rms", "layer"]
    """Whether it divides by the root mean square, or takes the mean away first."""
    offset: float
    """What it adds to its weight before it multiplies."""


@torch.no_grad()
def norm_rule(norm: nn.Module, hidden: int) -> NormRule:
    """Finds out by running a copy of a norm over `hidden` channels with weights of zero, then of one.

    Raises:
        BuildError: it computes something else.
    """
    twin = _without_hooks(norm).to_empty(device="cpu").float()
    probe = torch.linspace(-1.0, 3.0, hidden)

    def run(weight: float) -> Tensor:
        for name, parameter in twin.named_parameters():
            parameter.fill_(weight if "weight" in name else 0.0)
        result: Tensor = twin(probe[None, None])[0, 0]
        return result

    rms = probe * probe.square().mean().rsqrt()
    centred = probe - probe.mean()
    layer = centred * centred.square().mean().rsqrt()
    at_one = run(1.0)
    weighted = any("weight" in name for name, _ in twin.named_parameters())
    at_zero = run(0.0) if weighted else torch.zeros_like(at_one)
    for kind, expected in (("rms", rms), ("layer", layer)):
        offset = float((at_zero / expected).mean())
        if torch.allclose(at_one, (1.0 + offset) * expected, rtol=1e-2, atol=1e-3):
            return NormRule("rms" if kind == "rms" else "layer", round(offset, 2))
    raise BuildError(f"{type(norm).__name__} is neither an RMS norm nor a layer norm")


def _without_hooks(module: nn.Module) -> nn.Module:
    """A copy that shares nothing. Hooks may hold a whole runtime, so they are not copied."""
    twin = copy.copy(module)
    for name, value in vars(nn.Module()).items():
        if "hooks" in name:
            vars(twin)[name] = value
    return copy.deepcopy(twin)


@torch.no_grad()
def embedding_scale(embedding: nn.Module) -> float:
    """What an embedding multiplies its rows by; 1.0 where its weight is not there to be looked at."""
    weight = getattr(embedding, "weight", None)
    if not isinstance(weight, Tensor) or weight.is_meta or not weight.is_floating_point():
        return 1.0
    ids = torch.arange(min(8, len(weight)), device=weight.device)[None]
    given = type(embedding).forward(embedding, ids)  # without hooks
    rows = weight[ids[0]].float().norm()
    return float(given.float().norm() / rows) if float(rows) else 1.0


def _layer_list(model: nn.Module) -> str | None:
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    depth = config.num_hidden_layers // sublayers(config)
    lists = [
        (name.count("."), -sum(parameter.numel() for parameter in module.parameters()), name)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    return min(lists)[2] if lists else None


def _final_norm(decoder: nn.Module, hidden: int) -> str:
    """The last norm that the decoder has as its own; others norm the embeddings."""
    found = ""
    for name, child in decoder.named_children():
        weight = getattr(child, "weight", None)
        if is_norm(child) and (not isinstance(weight, Tensor) or weight.numel() == hidden):
            found = name
    return found


def _embedding(model: PreTrainedModel) -> str | None:
    try:
        return _name_of(model, model.get_input_embeddings())
    except (AttributeError, NotImplementedError):
        return None


def _head(model: PreTrainedModel) -> str | None:
    return _name_of(model, model.get_output_embeddings())


def _name_of(model: nn.Module, wanted: nn.Module | None) -> str | None:
    return next((name for name, module in model.named_modules() if module is wanted), None)
