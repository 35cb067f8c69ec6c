"""A draft with as many rows in its embedding and head as its target.

Models of one family share a tokenizer and still differ in rows, since each pads them to a size of its own (Qwen2.5:
151,665 tokens, 151,936 rows at 0.5B and 152,064 at 7B). Only ids below both counts are shared. A draft is given the
target's count when it is opened, so every runtime sees equal vocabularies:

- It proposes shared ids only. The head's further rows are cut off; missing ones have probability 0.
- It reads every id of the target. For one beyond its own rows it reads token `STAND_IN`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from draftrank.errors import IncompatibleDraftError
from draftrank.models.architecture import Architecture
from draftrank.models.forms import LowRankLinear, PaddedHead, TrimmedHead
from draftrank.models.matrices import some_rows
from draftrank.models.resizing import replace_module

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STAND_IN = 0
"""The token that a draft reads where the target has an id beyond the draft's rows."""


def cut_rows(model: PreTrainedModel, rows: int) -> None:
    """Leaves only the first `rows` rows of embedding and head, in place; a model with no more stays as it is.

    Raises:
        IncompatibleDraftError: the head is of a form whose rows cannot be cut.
    """
    config = model.config.get_text_config()
    if rows >= config.vocab_size:
        return
    shape = Architecture.of(model)
    embedding, head = shape.embedding(model), shape.head(model)
    tied = getattr(head, "weight", None) is embedding.weight
    assert isinstance(embedding, nn.Embedding)
    embedding.weight = _first(embedding.weight, rows)
    embedding.num_embeddings = rows
    if embedding.padding_idx is not None and embedding.padding_idx >= rows:
        embedding.padding_idx = None
    _cut_head(head, rows)
    if tied:
        head.weight = embedding.weight
    config.vocab_size = rows


def pad_rows(model: PreTrainedModel, rows: int) -> None:
    """Extends embedding and head to `rows` rows, in place; a model with no fewer stays as it is."""
    config = model.config.get_text_config()
    known = int(config.vocab_size)
    if rows <= known:
        return
    shape = Architecture.of(model)
    embedding, head = shape.embedding(model), shape.head(model)
    tied = getattr(head, "weight", None) is embedding.weight
    assert isinstance(embedding, nn.Embedding)
    weight = embedding.weight.new_empty(rows, embedding.weight.shape[1])
    weight[:known] = embedding.weight
    weight[known:] = embedding.weight[STAND_IN]
    embedding.weight = nn.Parameter(weight, requires_grad=False)
    embedding.num_embeddings = rows
    if tied:  # the two still lie in memory once
        head.weight = _first(embedding.weight, known)
    if isinstance(head, TrimmedHead):
        head.vocabulary = rows
    else:
        replace_module(model, shape.names.output_head, PaddedHead(head, known, rows).to(weight.device).eval())
    config.vocab_size = rows


@torch.no_grad()
def know_only(model: PreTrainedModel, token_ids: Sequence[int]) -> None:
    """Lets the head of a model that is not yet in dynamic int8 answer for some tokens only, in place; the others get
    probability 0. `token_ids` are the model's own, ascending; a trimmed head must know them.

    Raises:
        IncompatibleDraftError: the head is of a form from which no rows can be taken.
    """
    shape = Architecture.of(model)
    head = shape.head(model)
    rows = int(model.config.get_text_config().vocab_size)
    wanted = torch.tensor(token_ids, device=next(model.parameters()).device)
    if isinstance(head, TrimmedHead):
        head.projection = _taken(head.projection, torch.isin(head.token_ids, wanted).nonzero()[:, 0])
        head.token_ids = wanted
        return
    trimmed = TrimmedHead(_taken(head, wanted), len(wanted), rows)
    trimmed.token_ids = wanted
    replace_module(model, shape.names.output_head, trimmed.eval())


def _taken(head: nn.Module, rows: Tensor) -> nn.Module:
    """The head with some rows only; a plain head itself stays, since an embedding may share its weights."""
    if isinstance(head, LowRankLinear):
        replace_module(head, "second", _taken(head.second, rows))
        return head
    if type(head) is not nn.Linear:
        raise IncompatibleDraftError(
            f"token_intersection leaves out rows of the draft's head, and those of a {type(head).__name__} cannot be: keep "
            "the head out of quantization (`keep_precise`), or use `vocabulary: string_match`"
        )
    return some_rows(head, rows)


def _cut_head(head: nn.Module, rows: int) -> None:
    if isinstance(head, TrimmedHead):
        kept = int((head.token_ids < rows).sum())
        if kept < len(head.token_ids):
            _cut_head(head.projection, kept)
            head.token_ids = head.token_ids[:kept]
        head.vocabulary = rows
    elif isinstance(head, LowRankLinear):
        _cut_head(head.second, rows)
    elif type(head) is nn.Linear:
        head.weight = _first(head.weight, rows)
        if head.bias is not None:
            head.bias = _first(head.bias, rows)
        head.out_features = rows
    else:
        raise IncompatibleDraftError(
            f"the draft's head has more rows than the target's {rows}, and those of a {type(head).__name__} cannot be "
            "cut off: keep the head out of quantization (`keep_precise`)"
        )


def _first(weight: Tensor, rows: int) -> nn.Parameter:
    return nn.Parameter(weight.detach()[:rows], requires_grad=False)
