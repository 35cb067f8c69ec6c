"""Which tokens end an output: one rule for every target, whatever runs it.

The files of a target name its end tokens in up to four places: `eos_token_id` of `generation_config.json`, of
`config.json` and of its `text_config`, and the tokenizer's end token. Each of them ends an output. Programs
that read only the first place continue where it lacks a token that another place names, so the session warns
of such differences.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftrank.errors import InvalidInputError
from draftrank.models.model_files import read_object
from draftrank.models.prompting import PromptFormat, conversation_frame, special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATION, CONFIG = "generation_config.json", "config.json"
TEXT_CONFIG, TOKENIZER = "text_config in config.json", "the tokenizer"


def read_stop_tokens(folder: Path, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every end token that a Hugging Face folder or its tokenizer names and its vocabulary has; may be empty."""
    size = _vocabulary(folder, tokenizer)
    return frozenset(
        token for ids in _named(folder, tokenizer).values() for token in ids if _is_token(token, size)
    )


def stop_token_warnings(
    folder: Path, tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat
) -> tuple[str, ...]:
    """What is doubtful about a target's end tokens: its files disagree, name ids that are no tokens, name none, or, for
    a chat target, do not name the special token with which its template ends an answer."""
    named, size = _named(folder, tokenizer), _vocabulary(folder, tokenizer)
    found = [
        f"{place} of the target names the end token {token!r}, which is none of its {size:,} tokens: it is ignored"
        for place, ids in named.items()
        for token in ids
        if not _is_token(token, size)
    ]
    valid = {place: {token for token in ids if _is_token(token, size)} for place, ids in named.items()}
    by_place = {place: ids for place, ids in valid.items() if ids}
    stops: set[int] = set().union(*by_place.values())
    if not stops:
        found.append("no file of the target names an end token: every output runs to its limit")
    elif stops != next(iter(by_place.values())):
        places = "; ".join(f"{place}: {_in_words(ids, tokenizer)}" for place, ids in by_place.items())
        found.append(
            f"the target's files name different end tokens, and any of them ends an output ({places})"
        )
    closing = _end_of_answer(tokenizer) if prompt_format == "chat" else None
    if closing is not None and closing not in stops:
        found.append(
            f"the target's chat template ends an answer with {_in_words({closing}, tokenizer)}, which none of its "
            "files names as an end token: outputs do not end there"
        )
    return tuple(found)


def stop_ids_of_config(folder: Path) -> list[Any]:
    """What `config.json` names and `generation_config.json` does not: the part of the rule that the hashes of generation
    configuration and tokenizer do not cover."""
    config, text, generation = (_of_files(folder)[place] for place in (CONFIG, TEXT_CONFIG, GENERATION))
    return [token for token in (*config, *text) if token not in generation]


def _named(folder: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
    """Ids as each place names them, the place that other programs go by first."""
    return {**_of_files(folder), TOKENIZER: _as_list(tokenizer.eos_token_id)}


def _of_files(folder: Path) -> dict[str, list[Any]]:
    # The files as they are: transformers' classes fill in end tokens that no file names.
    config = read_object(folder / CONFIG)
    contents = {
        GENERATION: read_object(folder / GENERATION),
        CONFIG: config,
        TEXT_CONFIG: _text_config(config),
    }
    return {place: _as_list(content.get("eos_token_id")) for place, content in contents.items()}


def _vocabulary(folder: Path, tokenizer: PreTrainedTokenizerBase) -> int:
    config = read_object(folder / CONFIG)
    size = {**config, **_text_config(config)}.get("vocab_size")
    return size if isinstance(size, int) else len(tokenizer)


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    text = config.get("text_config")
    return text if isinstance(text, dict) else {}


def _as_list(named: Any) -> list[Any]:
    return named if isinstance(named, list) else [] if named is None else [named]


def _is_token(token: Any, size: int) -> bool:
    return type(token) is int and 0 <= token < size


def _in_words(ids: set[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return ", ".join(f"{token} ({tokenizer.convert_ids_to_tokens(token)})" for token in sorted(ids))


def _end_of_answer(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the chat template writes right after an answer."""
    try:
        following = conversation_frame(tokenizer).reopening
    except InvalidInputError:  # a template for one turn
        return None
    special = special_ids(tokenizer)
    place = next((index for index, token in enumerate(following) if token in special), None)
    if place is None or tokenizer.decode(following[:place]).strip():
        return None
    return following[place]
