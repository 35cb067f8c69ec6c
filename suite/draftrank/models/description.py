"""What a model's files say about it without its weights: enough to declare it as a target."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftrank.catalog.sources.hub import CARD
from draftrank.errors import InvalidInputError, MissingDataError
from draftrank.models.attention_windows import context_window
from draftrank.models.loading import is_quantized, load_tokenizer, read_config
from draftrank.models.prompting import PromptFormat, conversation_frame, render_turns
from draftrank.models.stop_tokens import CONFIG, GENERATION, stop_token_warnings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNKNOWN_LICENCE = "LicenseRef-unknown"
_LICENCES = {
    **{name.lower(): name for name in ("Apache-2.0", "MIT", "BSD-3-Clause", "BSD-2-Clause", "CC0-1.0")},
    **{
        name.lower(): name
        for name in ("CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "MPL-2.0")
    },
    "llama2": "LicenseRef-Llama-2",
    "llama3": "LicenseRef-Llama-3",
    "llama3.1": "LicenseRef-Llama-3.1",
    "llama3.2": "LicenseRef-Llama-3.2",
    "llama3.3": "LicenseRef-Llama-3.3",
    "gemma": "LicenseRef-Gemma",
}
"""SPDX expressions of the hub's names; other names become a `LicenseRef`."""
_FALLBACK_WINDOW = 2_048
_MAX_WINDOW = 10_000_000
"""What tokenizers say where they know no limit is larger."""


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """A model as its configuration, tokenizer and model card describe it."""

    model_type: str
    """Architecture of the language model, as transformers calls it."""
    layers: int
    """Number of its layers."""
    vocabulary: int
    """Rows of its vocabulary."""
    licence: str
    """An SPDX expression; `UNKNOWN_LICENCE` where no model card names one."""
    prompt_format: PromptFormat
    """`chat` where the tokenizer has a chat template that renders a conversation."""
    configured_window: int | None
    """Maximum number of tokens in the context by the configuration; None: it names none."""
    window: int
    """The same, or where the configuration names none, the tokenizer's or a guess."""
    doubts: tuple[str, ...]
    """What the files leave open, one sentence each."""


def describe_model(folder: Path) -> ModelDescription:
    """Reads a folder in the hub's layout: configuration, tokenizer and, if there is one, model card. Weights need not be
    there.

    Raises:
        MissingDataError: it has no configuration or tokenizer that transformers reads.
        UnsupportedModelError: it is not that of a decoder-only language model.
    """
    if not (folder / CONFIG).is_file():
        raise MissingDataError(
            f"{folder} has no {CONFIG}, so it is no model in transformers' layout: name a repository with safetensors, or "
            "declare a GGUF file by hand (docs/declarations.md)"
        )
    config = read_config(folder).get_text_config()
    tokenizer = load_tokenizer(folder)
    prompt_format, doubts = _prompt_format(tokenizer)
    doubts += stop_token_warnings(folder, tokenizer, prompt_format)
    if not (folder / GENERATION).is_file():
        doubts.append(f"there is no {GENERATION}: end tokens are those of {CONFIG} and the tokenizer")
    licence = _licence(folder / CARD)
    if licence is None:
        licence = UNKNOWN_LICENCE
        doubts.append(f"no model card ({CARD}) names the licence: write it to target.yaml")
    configured = context_window(config)
    window = configured or _window_of(tokenizer)
    if configured is None:
        doubts.append(
            f"the configuration names no context window: {window:,} tokens are declared, write what it was trained for"
        )
    if is_quantized(folder):
        doubts.append(
            "the weights are quantized: whether layers can be cut and trained depends on how transformers opens them"
        )
    return ModelDescription(
        model_type=str(config.model_type),
        layers=int(config.num_hidden_layers),
        vocabulary=int(config.vocab_size),
        licence=licence,
        prompt_format=prompt_format,
        configured_window=configured,
        window=window,
        doubts=tuple(doubts),
    )


def _prompt_format(tokenizer: PreTrainedTokenizerBase) -> tuple[PromptFormat, list[str]]:
    if not tokenizer.chat_template:
        return "completion", ["the tokenizer has no chat template: prompts are plain text (`completion`)"]
    try:
        render_turns(tokenizer, "chat", ("Hello",), ())
    except InvalidInputError as error:
        return "completion", [f"{error.problems[0].message}: prompts are plain text (`completion`)"]
    try:
        conversation_frame(tokenizer)
    except InvalidInputError as error:
        return "chat", [f"{error.problems[0].message}: tasks of several turns cannot be rendered"]
    return "chat", []


def _window_of(tokenizer: PreTrainedTokenizerBase) -> int:
    limit = int(tokenizer.model_max_length)
    return limit if 16 <= limit <= _MAX_WINDOW else _FALLBACK_WINDOW


def _licence(card: Path) -> str | None:
    """The licence that a model card's header names; None: there is none, or it does not say."""
    header = _header(card)
    named = header.get("license")
    if named == "other":
        named = header.get("license_name")
    if not isinstance(named, str) or not named.strip():
        return None
    name = named.strip().lower()
    return _LICENCES.get(name) or f"LicenseRef-{re.sub(r'[^A-Za-z0-9.-]+', '-', named.strip())[:100]}"


def _header(card: Path) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    text = card.read_text("utf-8", errors="replace") if card.is_file() else ""
    found = re.match(r"---\s*\n(.*?)\n---\s*(?:\n|$)", text, re.DOTALL)
    try:
        header = YAML(typ="safe", pure=True).load(found[1]) if found else None
    except YAMLError:
        header = None
    return header if isinstance(header, dict) else {}
