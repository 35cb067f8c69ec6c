"""The vocabulary of an EAGLE head's output: published as two maps, kept here as the target's ids.

`d2t` int64 [draft vocabulary] holds, for every row of the head, the target's id minus the row's number. `t2d` bool
[target vocabulary] marks the ids that have a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from draftrank.errors import Problem

_FETCH = "fetch the head again, or write both maps from the ids that its rows stand for"
_MISSING = "fetch the head again: d2t says which tokens its rows stand for"


def maps_of(token_ids: Tensor, vocabulary: int) -> dict[str, Tensor]:
    """The two maps of token ids, int64 [draft vocabulary], ascending, in a vocabulary of so many."""
    marked = torch.zeros(vocabulary, dtype=torch.bool)
    marked[token_ids] = True
    return {"d2t": token_ids - torch.arange(token_ids.numel()), "t2d": marked}


def ids_of(
    d2t: Tensor | None, t2d: Tensor | None, said: int | None, vocabulary: int, file: str
) -> tuple[Tensor | None, list[Problem]]:
    """What a head can say, and what is wrong with its maps.

    Args:
        d2t: the map, if the file holds it.
        t2d: likewise.
        said: `draft_vocab_size`, if the configuration states it.
        vocabulary: number of the target's tokens.
        file: where the maps are, for the messages.

    Returns:
        int64 [draft vocabulary], ascending, or None for the target's whole vocabulary.
    """
    if d2t is None and t2d is None:
        if said in (None, vocabulary):
            return None, []
        wrong, fix = f"is missing, and the head says {said} of {vocabulary} tokens", _MISSING
        return None, [Problem(wrong, file, field="d2t", fix=fix)]
    found = _malformed(d2t, t2d, said, vocabulary)
    if found:
        return None, [Problem(wrong, file, field=field, fix=fix) for field, wrong, fix in found]
    if d2t is None:
        assert t2d is not None
        return _unless_all(t2d.nonzero().flatten(), vocabulary), []
    ids = d2t.to(torch.int64) + torch.arange(d2t.numel())
    differs, fix = _disagreement(ids, t2d, vocabulary), _FETCH
    if differs is None:
        return _unless_all(ids, vocabulary), []
    if _disagreement(d2t.to(torch.int64), t2d, vocabulary) is None:
        differs = "holds the target's ids themselves"
        fix = "subtract the row's number from each: d2t is the target's id minus the row"
    return None, [Problem(differs, file, field="d2t", fix=fix)]


def _malformed(
    d2t: Tensor | None, t2d: Tensor | None, said: int | None, vocabulary: int
) -> list[tuple[str, str, str]]:
    """What is wrong with either map alone: which one, what, and the fix."""
    found = []
    if d2t is not None:
        if d2t.ndim != 1 or d2t.is_floating_point() or d2t.is_complex() or d2t.dtype == torch.bool:
            wrong = f"is {d2t.dtype} {list(d2t.shape)}, not integers [draft vocabulary]"
            found.append(("d2t", wrong, _FETCH))
        elif said is not None and d2t.numel() != said:
            wrong = f"has {d2t.numel()} rows, and draft_vocab_size is {said}"
            fix = "write the number of rows to draft_vocab_size, or fetch the head again"
            found.append(("d2t", wrong, fix))
    if t2d is not None:
        if t2d.dtype != torch.bool or tuple(t2d.shape) != (vocabulary,):
            wrong = f"is {t2d.dtype} {list(t2d.shape)}, not bool [{vocabulary}]"
            fix = "fetch the head again, or write the target's vocabulary to vocab_size"
            found.append(("t2d", wrong, fix))
        elif d2t is None and said is not None and int(t2d.sum()) != said:
            wrong = f"marks {int(t2d.sum())} tokens, and draft_vocab_size is {said}"
            found.append(("t2d", wrong, _FETCH))
    return found


def _disagreement(ids: Tensor, t2d: Tensor | None, vocabulary: int) -> str | None:
    """What is wrong with ids as a map, at its first wrong row; None: nothing."""
    outside = ((ids < 0) | (ids >= vocabulary)).nonzero().flatten()
    if outside.numel():
        row = int(outside[0])
        return f"row {row} is the target's id {int(ids[row])}, outside its {vocabulary} tokens"
    falls = (ids.diff() <= 0).nonzero().flatten()
    if falls.numel():
        row = int(falls[0])
        return f"row {row} is the target's id {int(ids[row])} and row {row + 1} is {int(ids[row + 1])}: ids must ascend"
    if t2d is None:
        return None
    marked = t2d.nonzero().flatten()
    if marked.numel() != ids.numel():
        return f"has {ids.numel()} rows, and t2d marks {marked.numel()} tokens"
    differ = (marked != ids).nonzero().flatten()
    if differ.numel():
        row = int(differ[0])
        return f"row {row} is the target's id {int(ids[row])}, where t2d marks {int(marked[row])}"
    return None


def _unless_all(ids: Tensor, vocabulary: int) -> Tensor | None:
    return None if ids.numel() == vocabulary else ids
