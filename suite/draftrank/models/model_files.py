"""The files of a model's folder, read so that whatever is wrong with one names the file and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from draftrank.errors import MissingDataError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

INDEX = "model.safetensors.index.json"
_FETCH = "fetch the folder again"
_MAX_REASON = 300
"""Letters of a library's message that are shown."""


def read_object(path: Path) -> dict[str, Any]:
    """A file's JSON object; empty where there is no such file.

    Raises:
        MissingDataError: it holds something else.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        _refuse(path, f"is no JSON file: {error}")
    if not isinstance(content, dict):
        _refuse(path, f"holds no JSON object but a {type(content).__name__}")
    return content


def require_readable_weights(folder: Path, *, quantized: bool) -> None:
    """Sees that every file of weights can be opened, that those which an index names are there, and that weights are whole
    numbers only where the configuration says how they are `quantized`.

    Raises:
        MissingDataError: one cannot be opened, is not there, or holds what is not to be told.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / INDEX
    index = read_object(path)
    if path.is_file():
        named = index.get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
            _refuse(path, "weight_map: does not give the file of each weight by its name")
        for file in sorted(set(named.values())):
            if not (folder / file).is_file():
                _refuse(path, f"weight_map: the file {file} is not here")
    for weights in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(weights, "pt") as opened:
                names = () if quantized else tuple(opened.keys())
                kinds = {name: opened.get_slice(name).get_dtype() for name in names}
        except (SafetensorError, OSError) as error:
            pointer = " (a pointer of git-lfs?)" if weights.stat().st_size < 1024 else ""
            _refuse(weights, f"is no safetensors file{pointer}: {error}")
        for name, kind in kinds.items():
            if name.endswith(".weight") and kind[0] in "IU":
                _refuse(
                    weights,
                    f"{name} is {kind}, and config.json has no quantization_config that tells how to read it",
                )


def reason_in_one_line(error: Exception) -> str:
    """What a library says, without line breaks and not at length; with the kind of error where Python raised it and the text
    alone says little."""
    said = " ".join(str(error).split())
    plain = type(error).__module__ != "builtins" or isinstance(error, OSError | ValueError | RuntimeError)
    told = said if said and plain else f"{type(error).__name__}: {said}"
    return told if len(told) <= _MAX_REASON else f"{told[:_MAX_REASON]} …"


def field_with(config: PretrainedConfig, value: object) -> str | None:
    """The dotted name of the field of a configuration that holds a word which its family does not know."""

    def look(content: object, place: str) -> str | None:
        if isinstance(content, dict):
            found = (look(one, f"{place}.{name}" if place else str(name)) for name, one in content.items())
            return next((one for one in found if one), None)
        return place if isinstance(value, str) and content == value else None

    return look(config.to_dict(), "")


def _refuse(path: Path, reason: str) -> NoReturn:
    raise MissingDataError(f"{path}: {reason}; {_FETCH}")
