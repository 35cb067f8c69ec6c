"""The heads of a draft and its target while the one learns from the other."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from draftrank.models.architecture import Architecture
from draftrank.models.forms import TrimmedHead
from draftrank.models.matrices import some_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class HeadPair:
    """Logits of both over the tokens that the draft can say; all maps are of final hidden states [positions, hidden]."""

    kept: Tensor | None = None
    """Ids of the tokens that the draft can say, int64; None: all."""

    def __init__(
        self, draft: PreTrainedModel, target: PreTrainedModel, *, frozen_in: torch.dtype | None
    ) -> None:
        """Pairs the heads; `frozen_in`: dtype of the draft's head, where it is not trained; None: it is."""
        self._draft, self._target = draft, target
        self._shape, self._target_shape = Architecture.of(draft), Architecture.of(target)
        self._all_theirs = self._target_shape.head(target)
        self._ours, self._theirs = self._shape.head(draft), self._all_theirs
        if isinstance(self._ours, TrimmedHead):
            # what the draft cannot say is left out on both sides, and costs nothing
            self.kept, self._ours = self._ours.token_ids, self._ours.projection
            self._theirs = some_rows(self._all_theirs, self.kept)
        if frozen_in is not None:
            # autocast would convert a frozen head anew in every chunk
            self._ours = copy.deepcopy(self._ours).to(frozen_in).requires_grad_(False)

    def ours(self, hidden: Tensor) -> Tensor:
        """The draft's."""
        return self._shape.logits(self._draft, hidden, self._ours)

    def theirs(self, hidden: Tensor) -> Tensor:
        """The target's."""
        return self._target_shape.logits(self._target, hidden, self._theirs)

    def all_theirs(self, hidden: Tensor) -> Tensor:
        """The target's, of all tokens."""
        return self._target_shape.logits(self._target, hidden, self._all_theirs)
