"""Which tokens a trimmed head keeps, and the head made of them."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from draftrank.errors import BuildError
from draftrank.models.cache import weight_files
from draftrank.models.forms import LowRankLinear, TrimmedHead, TrimmedHeadForm
from draftrank.models.loading import read_forms
from draftrank.models.matrices import matrix, some_rows
from draftrank.models.resizing import replace_module

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from draftrank.building.working_draft import WorkingDraft


def trim_vocabulary(draft: WorkingDraft, tokens: Tensor, keep: int, stop_tokens: frozenset[int]) -> float:
    """Trims the draft's head in place to `keep` tokens; returns the share of the text, int of any shape, that it still can
    say. Stop tokens are kept in any case, as `marked_tokens` are.

    Raises: see `check_trimming`.
    """
    shape = draft.architecture
    vocabulary, always = check_trimming(draft, keep, stop_tokens)
    kept = most_used_tokens(tokens, vocabulary, keep, always)
    replace_module(draft.model, shape.names.output_head, trimmed_head(draft, kept))
    draft.forms.append(TrimmedHeadForm(module=shape.names.output_head, kept=keep))
    return round(float(torch.isin(tokens.long(), kept).double().mean()), 6)


def check_trimming(draft: WorkingDraft, keep: int, stop_tokens: frozenset[int]) -> tuple[int, frozenset[int]]:
    """Refuses what `trim_vocabulary` cannot do.

    Returns:
        how many tokens there are, and which are kept in any case.

    Raises:
        BuildError: there are fewer tokens, or more that must be kept, or the head is no longer a plain matrix.
    """
    head = draft.architecture.head(draft.model)
    if isinstance(head, LowRankLinear | TrimmedHead):
        raise BuildError("the head was factorized or trimmed before: trim the vocabulary first, and once")
    vocabulary = matrix(head).shape[0]
    always = frozenset(token for token in marked_tokens(draft.tokenizer) | stop_tokens if token < vocabulary)
    _require_room(vocabulary, keep, len(always))
    return vocabulary, always


def most_used_tokens(token_ids: Tensor, vocabulary: int, keep: int, always: Collection[int]) -> Tensor:
    """Ids of the `keep` tokens that occur most often in a text, int of any shape, ascending, int64 [keep]; those of
    `always` are among them whatever they count.

    Tokens that occur equally often go by id: in merge order, the tokenizer's own sign of frequency.

    Raises:
        BuildError: there are fewer tokens, or more that must be kept.
    """
    wanted = sorted(set(always))
    _require_room(vocabulary, keep, len(wanted))
    counts = torch.bincount(token_ids.flatten().long(), minlength=vocabulary)[:vocabulary]
    counts[wanted] = token_ids.numel() + 1
    return torch.sort(counts, descending=True, stable=True).indices[:keep].sort().values


def _require_room(vocabulary: int, keep: int, always: int) -> None:
    if keep > vocabulary:
        raise BuildError(
            f"the vocabulary has {vocabulary} tokens, so {keep} cannot be kept: write at most {vocabulary} in "
            "keep_tokens"
        )
    if always > keep:
        raise BuildError(
            f"{always} tokens are kept in any case, because the tokenizer or its chat template marks them or an "
            f"output ends with them: write at least {always} in keep_tokens"
        )


@torch.no_grad()
def trimmed_head(draft: WorkingDraft, token_ids: Tensor) -> TrimmedHead:
    """The draft's head with the rows of some tokens only; `token_ids` int64 [kept], ascending."""
    head = draft.architecture.head(draft.model)
    trimmed = TrimmedHead(some_rows(head, token_ids), len(token_ids), len(matrix(head)))
    trimmed.token_ids.copy_(token_ids)
    return trimmed.to(matrix(head).device).eval()


def marked_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that mean something to chat models however seldom a corpus has them: those that the tokenizer adds to its
    text (as `<tool_call>`) or calls special, and those that the chat template writes. Placeholders that no text was ever
    trained on are left out, unless the template names them."""
    template = str(tokenizer.chat_template or "")
    added = {
        index
        for index, token in tokenizer.added_tokens_decoder.items()
        if not _PLACEHOLDER.search(token.content) or token.content in template
    }
    return frozenset(added | set(tokenizer.all_special_ids) | _written_by_template(tokenizer))


_PLACEHOLDER = re.compile(r"(?:unused|reserved|extra|dummy|control|special)\w*?\d+\W*$", re.IGNORECASE)
"""As `<unused12>`, `<|reserved_special_token_3|>`: thousands in Gemma's tokenizer, as many as a small head keeps."""

_WORD = "qxzvjw"
"""Stands for all that is said."""
_SAID = {role: {"role": role, "content": _WORD} for role in ("system", "user", "assistant")}
_CALL = {"type": "function", "id": _WORD, "function": {"name": _WORD, "arguments": {_WORD: _WORD}}}
_TOOL = {"name": _WORD, "description": _WORD, "parameters": {"type": "object", "properties": {}}}
_CONVERSATIONS: tuple[tuple[list[dict[str, Any]], list[dict[str, Any]] | None], ...] = (
    ([_SAID["user"], _SAID["assistant"], _SAID["user"]], None),
    ([_SAID["system"], _SAID["user"], _SAID["assistant"], _SAID["user"]], None),
    (
        [
            _SAID["user"],
            {"role": "assistant", "content": "", "tool_calls": [_CALL]},
            {"role": "tool", "name": _WORD, "tool_call_id": _WORD, "content": _WORD},
            _SAID["assistant"],
        ],
        [{"type": "function", "function": _TOOL}],
    ),
)
"""Without and with a system prompt, and with a call of a tool; a template may refuse some."""


def _written_by_template(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    from jinja2 import TemplateError

    found: set[int] = set()
    for messages, tools in _CONVERSATIONS if tokenizer.chat_template else ():
        try:
            text: str = tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            continue  # a template is a program, and may fail in any way on a conversation that it does not know
        for part in text.split(_WORD):
            found.update(tokenizer(part, add_special_tokens=False).input_ids)
    return found


def known_tokens(folder: Path) -> frozenset[int] | None:
    """Ids that the trimmed head of a built draft knows; None for a head that knows the whole vocabulary."""
    for form in read_forms(folder):
        if isinstance(form, TrimmedHeadForm):
            for file in weight_files(folder):
                with safe_open(file, "pt") as stored:
                    name = f"{form.module}.token_ids"
                    if name in stored.keys():  # noqa: SIM118
                        return frozenset(stored.get_tensor(name).tolist())
    return None
