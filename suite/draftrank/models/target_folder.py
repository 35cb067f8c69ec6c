"""From a declared target to a Hugging Face folder on disk.

A GGUF file is turned once into fp32 safetensors with its tokenizer, so that every later run opens an
ordinary folder in a second instead of unpacking blocks for a minute. A folder is used where it lies.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftrank.catalog.base import sha256_of_json
from draftrank.catalog.sources.base import FetchContext, SourceBase
from draftrank.catalog.target import Target
from draftrank.errors import InvalidInputError, MissingDataError
from draftrank.models.attention_windows import context_window, require_cache
from draftrank.models.cache import (
    FACTS,
    only_process,
    publish_file,
    publish_folder,
    weight_files,
    weights_sha256,
)
from draftrank.models.gguf_format import read_gguf
from draftrank.models.loading import load_tokenizer, outline, read_config
from draftrank.models.model_files import reason_in_one_line
from draftrank.models.quiet import quiet_gguf, quiet_transformers
from draftrank.progress import Progress

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_CONVERSION = 2
"""Raised when GGUF files come to be converted in another way, so that older conversions are not used again."""


@dataclass(frozen=True, slots=True)
class TargetFolder:
    """A target that models and tokenizers can be loaded from."""

    path: Path
    """The Hugging Face folder."""
    weights_sha256: str
    """Hash over its weight files: see `cache.weights_sha256`. Where a GGUF file states what transformers' reader passes
    over, such as RoPE scaling, over that too: drafts made of the model without it are of another model."""
    parameters: int
    """Parameters of the model; a head that shares the embedding counts once."""
    bytes_on_disk: int
    """Size of its weight files."""
    model_type: str
    """Architecture, as transformers calls it."""
    context_window: int
    """Tokens it may hold: as declared, else as configured."""


def ensure_target(target: Target, context: FetchContext) -> TargetFolder:
    """Fetches a target and makes it a folder that can be loaded, once per cache.

    Raises:
        MissingDataError: its source cannot be had now, or holds no safetensors.
        InvalidInputError: its source is no model, or does not fit the declaration.
        UnsupportedModelError: the engine cannot run its architecture.
    """
    folder = context.cache / "targets" / f"{target.id}-{target.content_sha256()[:16]}-v{_CONVERSION}"
    folder, facts = _ensure(target.source, target.id, folder, context)
    return _checked(target, folder, facts or _facts_of_foreign_folder(folder, context))


def ensure_model(source: SourceBase, context: FetchContext) -> Path:
    """Fetches a model and makes it a folder that can be loaded, once per cache.

    Raises:
        MissingDataError: it cannot be had now.
        InvalidInputError: it is neither a folder nor a GGUF file that transformers reads.
    """
    name = sha256_of_json(source.model_dump(mode="json"))[:16]
    folder, _ = _ensure(source, f"model {name}", context.cache / "models" / f"{name}-v{_CONVERSION}", context)
    return folder


def _ensure(
    source: SourceBase, name: str, folder: Path, context: FetchContext
) -> tuple[Path, dict[str, Any] | None]:
    """Where a fetched model lies, and the facts of one that was converted to `folder`; None: it is a folder itself."""
    facts = _read_facts(folder)
    if facts is None:
        with only_process(folder, context.progress, f"the {name}"):
            facts = _read_facts(folder)
            if facts is None:
                fetched = source.fetch(context)
                if fetched.is_dir():
                    return fetched, None
                read_gguf(fetched)
                publish_folder(folder, lambda staging: _convert(fetched, staging, name, context.progress))
                facts = _read_facts(folder)
                assert facts is not None
    return folder, facts


def gguf_file(target: Target, context: FetchContext) -> Path:
    """The GGUF file that a target comes as.

    Raises:
        MissingDataError: it cannot be had now.
        InvalidInputError: the target comes in another form.
    """
    source = target.source.fetch(context)
    if source.is_dir():
        message = f"the target {target.id!r} is no GGUF file, which llama.cpp needs, as does --dtype file"
        fix = "use another --backend or --dtype, or name a GGUF file as its source"
        raise _misdeclared(target, message, "source", fix)
    read_gguf(source)
    return source


def _checked(target: Target, folder: Path, facts: dict[str, Any]) -> TargetFolder:
    named, configured = f"the target {target.id!r}", facts["context_window"]
    if target.prompt_format == "chat" and not load_tokenizer(folder).chat_template:
        fix = "write `prompt_format: completion`"
        raise _misdeclared(target, f"{named} has no chat template", "prompt_format", fix)
    window = target.context_window or configured
    if window is None:
        message = f"the configuration of {named} says nothing of how many tokens it may hold"
        fix = "write how many tokens it was trained for, e.g. `context_window: 2048`"
        raise _misdeclared(target, message, "context_window", fix)
    if configured is not None and window > configured:
        message = f"{named} holds {configured} tokens, not {window}"
        raise _misdeclared(target, message, "context_window", f"write at most {configured}")
    return TargetFolder(path=folder, **{**facts, "context_window": window})


def _misdeclared(target: Target, message: str, field: str, fix: str) -> InvalidInputError:
    file = f"drafts/{target.id}/target.yaml"
    return InvalidInputError.single(message, file=file, field=field, fix=fix)


def _convert(source: Path, staging: Path, name: str, progress: Progress) -> None:
    """Reads a GGUF file into memory as fp32 and saves it the ordinary way."""
    with progress.stage(f"convert {name}", 3) as stage:
        stage.advance(0, "reading the weights")
        model, tokenizer, restored = _read_gguf(source)
        stage.advance(1, "saving")
        with quiet_transformers():
            model.save_pretrained(staging)
            tokenizer.save_pretrained(staging)
        stage.advance(1, "hashing")
        facts = _facts(staging, model.config)
        if restored:
            facts["weights_sha256"] = sha256_of_json([facts["weights_sha256"], restored])
        _write_json(staging / FACTS, facts)
        stage.advance()


def _read_gguf(source: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """The model, the tokenizer, and what of the configuration transformers' reader had otherwise."""
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from draftrank.models.gguf_config import complete_config, require_all_weights

    try:
        with quiet_gguf():
            packed, found = AutoModelForCausalLM.from_pretrained(
                source.parent,
                gguf_file=source.name,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
                output_loading_info=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
            reader = gguf.GGUFReader(str(source))
    except Exception as error:  # of a broken file its reader may raise anything
        raise InvalidInputError.single(
            f"transformers cannot read it: {reason_in_one_line(error)}",
            file=source.name,
            field="source",
            fix="use a GGUF file of an architecture that transformers reads, or a safetensors folder",
        ) from error
    packed.config.__dict__.pop("quantization_config", None)
    config = complete_config(packed.config, source, reader)
    require_all_weights(packed, set(found["missing_keys"]), source, reader)
    before = packed.config.to_dict()
    restored = {key: value for key, value in config.to_dict().items() if before.get(key) != value}
    return _without_quantizer(packed, config), tokenizer, restored


def _without_quantizer(packed: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """The same weights in a model that may be saved: one read from GGUF refuses to be."""
    import torch

    with torch.device("meta"):
        model = type(packed)(config)
    model.load_state_dict(packed.state_dict(), strict=True, assign=True)
    model.tie_weights()
    model.generation_config = packed.generation_config
    return model


def _facts(folder: Path, config: PretrainedConfig) -> dict[str, Any]:
    files = weight_files(folder)
    empty = outline(config, folder / "config.json")
    empty.tie_weights()
    require_cache(empty)
    return {
        "weights_sha256": weights_sha256(files),
        "parameters": sum(parameter.numel() for parameter in empty.parameters()),
        "bytes_on_disk": sum(path.stat().st_size for path in files),
        "model_type": str(config.model_type),
        "context_window": context_window(config),
    }


def _facts_of_foreign_folder(folder: Path, context: FetchContext) -> dict[str, Any]:
    """Facts of a folder that is not ours: hashed once, remembered in the cache for these very files."""
    files = weight_files(folder)
    decisive = [*files, *folder.glob("config.json")]
    seen = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in decisive]
    memory = context.cache / "targets" / "facts" / f"{sha256_of_json(seen)}.json"
    if memory.is_file():
        remembered: dict[str, Any] = json.loads(memory.read_text("utf-8"))
        return remembered
    config = read_config(folder)
    with context.progress.stage(f"hash {folder.name}"):
        facts = _facts(folder, config)
    publish_file(memory, lambda path: _write_json(path, facts))
    return facts


def _read_facts(folder: Path) -> dict[str, Any] | None:
    path = folder / FACTS
    if not path.is_file():
        return None
    facts: dict[str, Any] = json.loads(path.read_text("utf-8"))
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if size != facts["bytes_on_disk"]:
        raise MissingDataError(f"{folder} was changed after it was made: remove it, it will be made again")
    return facts


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
