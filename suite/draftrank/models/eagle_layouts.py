"""Published EAGLE heads as files: three public layouts, read into one form.

- The original repositories of EAGLE and EAGLE-3: `fc`, `layers.0` or `midlayer`, `d2t` and `t2d`.
- SpecForge and SGLang: the same names, with or without `model.` before them; `eagle_config` in the configuration.
- The package `speculators`: the layer's configuration in `transformer_layer_config`, the layer as `layers.0`.

The field's number of an auxiliary hidden state is that of the layer whose input it is. `eagle_config` names the layer
whose output it is instead, one less: SGLang adds one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from draftrank.errors import InvalidInputError, MissingDataError, Problem
from draftrank.models.eagle_head import PublishedHead, weight_shapes
from draftrank.models.eagle_refusals import (
    ELSEWHERE,
    refuse_other_layers,
    refuse_other_methods,
    refuse_other_weights,
)
from draftrank.models.eagle_vocabulary import ids_of

AUX_LAYERS = "eagle_aux_hidden_state_layer_ids"
CONFIG = "config.json"
_RENAMED = (
    (re.compile(r"^model\."), ""),
    (re.compile(r"^(midlayer|layers\.0|transformer)\."), "layer."),
    (re.compile(r"^fusion_fc\."), "fc."),
)
_PASSED_OVER = re.compile(r"rotary_emb\.inv_freq$|^verifier_(norm|lm_head)\.weight$")
"""Buffers, and copies of the target's own weights."""
_BIASES = tuple(f"layer.self_attn.{part}_proj.bias" for part in "qkv")
_OPTIONAL = {"embed_tokens.weight", "lm_head.weight", "fc.bias", "layer.self_attn.o_proj.bias"}
_ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
_NEEDED_FIELDS = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
_FURTHER_FIELDS = ("num_key_value_heads", "head_dim", "max_position_embeddings")
_AGAIN = "fetch the head again, or correct its config.json"


def read_published_head(folder: Path) -> PublishedHead:
    """Reads a head in any of the public layouts from a folder with `config.json` and `*.safetensors`.

    Raises:
        InvalidInputError: it is a head of another kind, or its files contradict one another; all contradictions at once.
        MissingDataError: it has no configuration or no weights.
    """
    file = folder / CONFIG
    config = _read_config(file)
    refuse_other_methods(config, str(file))
    below = next(
        (key for key in ("transformer_layer_config", "model") if isinstance(config.get(key), dict)), ""
    )
    stated = config[below] if below else config
    refuse_other_layers(stated, str(file), below)
    weights, origins = _read_weights(folder)
    refuse_other_weights(weights, {name: str(origin) for name, origin in origins.items()})
    tensors, stored, problems = _canonical(weights, origins)
    if "fc.weight" not in tensors:
        raise InvalidInputError.single(
            "has no fc.weight, so it is no EAGLE head",
            file=str(folder),
            field="fc.weight",
            fix="name the folder of an EAGLE head; an ordinary model is a draft of the kind draft_model",
        )
    problems += _config_problems(config, stated, str(file), f"{below}." if below else "")
    if problems:
        raise InvalidInputError(problems)
    eagle3 = _is_eagle3(config, tensors)
    fields = _llama_fields(stated, tensors)
    maps = {name: tensors.pop(name, None) for name in ("d2t", "t2d")}
    rows = config.get("draft_vocab_size", stated.get("draft_vocab_size"))
    place = next((stored[name][1] for name in maps if name in stored), stored["fc.weight"][1])
    token_ids, problems = ids_of(maps["d2t"], maps["t2d"], rows, fields["vocab_size"], place)
    aux_layers, wrong = _aux_layers(config, str(file))
    head = PublishedHead(
        architecture="eagle3" if eagle3 else "eagle",
        config=fields,
        aux_layers=aux_layers if eagle3 else None,
        norm_before_residual=bool(config.get("norm_before_residual", False)),
        token_ids=token_ids,
        tensors=tensors,
    )
    width = config.get("target_hidden_size") or fields["hidden_size"]
    if problems:  # without a vocabulary nothing is known of the output's rows
        head = replace(head, tensors={name: one for name, one in tensors.items() if name != "lm_head.weight"})
    problems += wrong or _weight_problems(head, width, stored, str(folder))
    if problems:
        raise InvalidInputError(problems)
    return head


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise MissingDataError(f"{file.parent} has no {CONFIG}: name the folder of a published EAGLE head")
    try:
        config = json.loads(file.read_text("utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise InvalidInputError.single(f"is not JSON: {error}", file=str(file), fix=_AGAIN) from error
    if not isinstance(config, dict):
        raise InvalidInputError.single("is no JSON object", file=str(file), fix=_AGAIN)
    return config


def _read_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, Path]]:
    """Weights by their stored names, and the file of each."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = {}
    origins: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            loaded = load_file(path)
        except (SafetensorError, OSError) as error:
            raise InvalidInputError.single(
                f"cannot be read: {error}", file=str(path), fix="fetch the file again"
            ) from error
        twice = sorted(weights.keys() & loaded.keys())
        if twice:
            raise InvalidInputError.single(
                f"is in {origins[twice[0]].name} too",
                file=str(path),
                field=twice[0],
                fix="remove one of the files",
            )
        weights |= loaded
        origins |= dict.fromkeys(loaded, path)
    if weights:
        return weights, origins
    pickles = sorted(path for ending in ("*.bin", "*.pt", "*.pth") for path in folder.glob(ending))
    if not pickles:
        raise MissingDataError(f"{folder} holds no *.safetensors file: fetch the head's weights")
    raise InvalidInputError.single(
        "is a pickle, which can run code when it is read; only safetensors are read",
        file=str(pickles[0]),
        fix="convert it once, where you trust it: "
        f"`safetensors.torch.save_file(torch.load({pickles[0].name!r}, weights_only=True), 'model.safetensors')`",
    )


def _canonical(
    weights: Mapping[str, Tensor], origins: Mapping[str, Path]
) -> tuple[dict[str, Tensor], dict[str, tuple[str, str]], list[Problem]]:
    """Weights by canonical name, the stored name and file of each, and weights that are there twice."""
    tensors: dict[str, Tensor] = {}
    stored: dict[str, tuple[str, str]] = {}
    problems = []
    for name, tensor in weights.items():
        new = name
        for pattern, to in _RENAMED:
            new = pattern.sub(to, new)
        if _PASSED_OVER.search(new):
            continue
        # The package speculators saves these as NaN where it has not loaded the target's.
        if new in ("embed_tokens.weight", "lm_head.weight") and bool(tensor.isnan().all()):
            continue
        if new in tensors:
            problems.append(
                Problem(
                    f"is the same weight as {stored[new][0]}",
                    str(origins[name]),
                    field=name,
                    fix="remove one",
                )
            )
        tensors[new], stored[new] = tensor, (name, str(origins[name]))
    return tensors, stored, problems


def _config_problems(
    config: Mapping[str, Any], stated: Mapping[str, Any], file: str, prefix: str
) -> list[Problem]:
    problems = [
        Problem(f"is {stated.get(name)!r}, not a positive number", file, field=f"{prefix}{name}", fix=_AGAIN)
        for name in (*_NEEDED_FIELDS, *(name for name in _FURTHER_FIELDS if stated.get(name) is not None))
        if type(stated.get(name)) is not int or stated[name] < 1
    ]
    kind = _rope(stated)["rope_type"]
    if kind not in _ROPE_TYPES:
        problems.append(
            Problem(f"{kind!r} is no RoPE scaling of Llama", file, field=f"{prefix}rope_scaling", fix=_AGAIN)
        )
    if config.get("speculators_model_type") == "eagle3" and "norm_before_residual" not in config:
        problems.append(
            Problem(
                "is absent: the package speculators takes false, vLLM true",
                file,
                field="norm_before_residual",
                fix="write what the head was trained with",
            )
        )
    return problems


def _is_eagle3(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    kind = config.get("speculators_model_type")
    named = any("eagle3" in str(name).lower() for name in config.get("architectures") or ())
    return kind == "eagle3" or named or "layer.hidden_norm.weight" in tensors or "d2t" in tensors


def _llama_fields(stated: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    heads = stated["num_attention_heads"]
    return {
        **{name: stated[name] for name in _NEEDED_FIELDS},
        "num_hidden_layers": 1,
        "num_key_value_heads": stated.get("num_key_value_heads") or heads,
        "head_dim": stated.get("head_dim") or stated["hidden_size"] // heads,
        "hidden_act": stated.get("hidden_act") or "silu",
        "rms_norm_eps": float(stated.get("rms_norm_eps", 1e-6)),
        "max_position_embeddings": stated.get("max_position_embeddings") or 2048,
        "rope_parameters": _rope(stated),
        # Layers of Qwen 2 have biases that no field states.
        "attention_bias": bool(stated.get("attention_bias")) or any(name in tensors for name in _BIASES),
        "tie_word_embeddings": False,
    }


def _rope(stated: Mapping[str, Any]) -> dict[str, Any]:
    """RoPE in the fields of transformers 5, from those or from `rope_theta` and `rope_scaling`."""
    given = stated.get("rope_parameters") or stated.get("rope_scaling") or {}
    given = dict(given.get("full_attention", given))
    kind = given.pop("rope_type", None) or given.get("type") or "default"
    given.pop("type", None)
    base = given.pop("rope_theta", None) or stated.get("rope_theta") or 10_000.0
    return {"rope_type": kind, "rope_theta": float(base), **given}


def _aux_layers(config: Mapping[str, Any], file: str) -> tuple[tuple[int, ...] | None, list[Problem]]:
    nested = (config.get("eagle_config") or {}).get(AUX_LAYERS) or None
    direct = config.get(AUX_LAYERS) or None
    for field, layers in ((AUX_LAYERS, direct), (f"eagle_config.{AUX_LAYERS}", nested)):
        if layers is not None and not (isinstance(layers, list) and all(type(one) is int for one in layers)):
            return None, [Problem(f"is {layers!r}, not a list of layers", file, field=field, fix=_AGAIN)]
    shifted = None if nested is None else [layer + 1 for layer in nested]
    if direct is not None and shifted is not None and direct != shifted:
        return None, [
            Problem(
                f"means the inputs of layers {shifted}, and {AUX_LAYERS} those of {direct}",
                file,
                field=f"eagle_config.{AUX_LAYERS}",
                fix="keep the one that the head was trained with: eagle_config counts the layers whose output is read",
            )
        ]
    layers = direct or shifted
    return (tuple(layers) if layers else None), []


def _weight_problems(
    head: PublishedHead, target_hidden_size: int, stored: Mapping[str, tuple[str, str]], folder: str
) -> list[Problem]:
    shapes = weight_shapes(head, target_hidden_size)
    optional = _OPTIONAL | (set() if head.config["attention_bias"] else set(_BIASES))
    if head.token_ids is not None:
        optional -= {"lm_head.weight"}  # the target's says all tokens
    what = "an EAGLE-3 head" if head.architecture == "eagle3" else "an EAGLE head"
    problems = [
        Problem("is missing", folder, field=name, fix="fetch the head again: its weights are not complete")
        for name in shapes
        if name not in head.tensors and name not in optional
    ]
    for name, tensor in head.tensors.items():
        fix = _AGAIN
        if name not in shapes:
            message, fix = f"has no place in {what} of one Llama layer", ELSEWHERE
        elif tuple(tensor.shape) != shapes[name]:
            message = f"has the shape {list(tensor.shape)}, and by {CONFIG} it is {list(shapes[name])}"
        elif not tensor.is_floating_point():
            message, fix = f"is {tensor.dtype}", "name the head as it was trained, not quantized"
        elif not bool(tensor.isfinite().all()):
            message = "has entries that are no finite numbers"
        else:
            continue
        field, file = stored[name]
        problems.append(Problem(message, file, field=field, fix=fix))
    return problems
