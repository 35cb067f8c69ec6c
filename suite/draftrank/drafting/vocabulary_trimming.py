"""Which tokens a trimmed head keeps, and the head made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from draftrank.drafting.forms import LowRankLinear, TrimmedHead, TrimmedHeadForm
from draftrank.drafting.matrices import matrix
from draftrank.drafting.resizing import replace_module
from draftrank.errors import BuildError

if TYPE_CHECKING:
    from draftrank.drafting.working_draft import WorkingDraft


def trim_vocabulary(draft: WorkingDraft, tokens: Tensor, keep: int) -> float:
    """Trims the draft's head in place; returns the share of the text that it still can say.

    Args:
        draft: the model.
        tokens: text in which tokens are counted, int of any shape.
        keep: tokens the head keeps.

    Raises:
        BuildError: there are fewer tokens, or the head is no longer a plain matrix.
    """
    shape = draft.architecture
    head = shape.head(draft.model)
    if isinstance(head, LowRankLinear | TrimmedHead):
        raise BuildError("the head was factorized or trimmed before: trim the vocabulary first, and once")
    vocabulary = matrix(head).shape[0]
    kept = most_used_tokens(tokens, vocabulary, keep, ending_tokens(draft))
    replace_module(draft.model, shape.output_head, trimmed_head(draft, kept))
    draft.forms.append(TrimmedHeadForm(module=shape.output_head, kept=keep))
    return round(float(torch.isin(tokens.long(), kept).double().mean()), 6)


def most_used_tokens(token_ids: Tensor, vocabulary: int, keep: int, always: list[int]) -> Tensor:
    """Ids of the tokens that occur most often, ascending, int64 [keep].

    Tokens that occur equally often go by id: in merge order, the tokenizer's own sign of frequency.

    Args:
        token_ids: text, int of any shape.
        vocabulary: size of the vocabulary.
        keep: how many.
        always: ids that are kept whatever they count, e.g. those that end an answer.

    Raises:
        BuildError: there are fewer tokens, or more that must be kept.
    """
    if keep > vocabulary:
        raise BuildError(
            f"the vocabulary has {vocabulary} tokens, so {keep} cannot be kept: write at most {vocabulary} in "
            "keep_tokens"
        )
    wanted = sorted(set(always))
    if len(wanted) > keep:
        raise BuildError(f"{len(wanted)} tokens end an answer: write at least {len(wanted)} in keep_tokens")
    counts = torch.bincount(token_ids.flatten().long(), minlength=vocabulary)[:vocabulary]
    counts[wanted] = token_ids.numel() + 1
    return torch.sort(counts, descending=True, stable=True).indices[:keep].sort().values


@torch.no_grad()
def trimmed_head(draft: WorkingDraft, token_ids: Tensor) -> TrimmedHead:
    """The draft's head with the rows of some tokens only; `token_ids` int64 [kept], ascending."""
    head = draft.architecture.head(draft.model)
    weight = matrix(head)
    bias = head.bias if isinstance(head.bias, Tensor) else None
    projection = nn.Linear(weight.shape[1], len(token_ids), bias=bias is not None)
    projection.weight.copy_(weight[token_ids])
    if bias is not None:
        projection.bias.copy_(bias[token_ids])
    trimmed = TrimmedHead(projection, len(token_ids), weight.shape[0])
    trimmed.token_ids.copy_(token_ids)
    return trimmed.to(weight.device, weight.dtype).eval().requires_grad_(False)


def ending_tokens(draft: WorkingDraft) -> list[int]:
    """Ids that end an answer."""
    found: set[int] = set()
    for config in (draft.model.config, draft.model.generation_config):
        named = getattr(config, "eos_token_id", None)
        found.update(named if isinstance(named, list) else [] if named is None else [named])
    if draft.tokenizer.eos_token_id is not None:
        found.add(int(draft.tokenizer.eos_token_id))
    return sorted(found)
