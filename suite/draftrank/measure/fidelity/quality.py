"""How good an output is that need not be the target's own: for lossy rules, and the baseline beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import fmean
from typing import TYPE_CHECKING

from rapidfuzz.distance import Indel

from draftrank.measure.records import Trial

if TYPE_CHECKING:
    from draftrank.engine.backends.base import Runtime

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class QualitySummary:
    """Means over the outputs of one arm."""

    outputs: int
    """Outputs that were judged."""
    log_likelihood: float
    """Mean over outputs of the target's mean log-probability per token, in nats."""
    rouge_l: float | None
    """Mean ROUGE-L F1 against the baseline's outputs."""
    correct: float | None
    """Share of right answers; None for tasks without answers."""


def summarise_quality(trials: Iterable[Trial]) -> QualitySummary | None:
    """Means over the trials whose quality was judged; None without any."""
    found = [trial.judgement.quality for trial in trials if trial.judgement and trial.judgement.quality]
    if not found:
        return None
    rouge = [one.rouge_l for one in found if one.rouge_l is not None]
    correct = [one.correct for one in found if one.correct is not None]
    return QualitySummary(
        len(found),
        fmean(one.log_likelihood for one in found),
        fmean(rouge) if rouge else None,
        fmean(correct) if correct else None,
    )


def mean_log_likelihood(target: Runtime, prompt: Sequence[int], output: Sequence[int]) -> float:
    """Mean natural logarithm of the target's probability of each token of an output, at least one, at temperature 1;
    the target's sequence is lost."""
    target.reset()
    target.reserve(len(prompt) + len(output))
    rows = [target.forward(prompt, keep=1).float().log_softmax(dim=-1)[0, output[0]].item()]
    if len(output) > 1:
        logits = target.forward(output[:-1]).float().log_softmax(dim=-1)
        rows += [logits[index, token].item() for index, token in enumerate(output[1:])]
    return fmean(rows)


def rouge_l(output: Sequence[int], baseline: Sequence[int]) -> float:
    """ROUGE-L F1 (Lin 2004) of token ids: twice their longest common subsequence ÷ both lengths.

    Token ids, unlike words, are defined for code and for every script.
    """
    return float(Indel.normalized_similarity(tuple(output), tuple(baseline)))


def is_correct(text: str, reference: str | None) -> bool | None:
    """Whether the last number of a text is the last number of the reference; None without one there."""
    wanted = _last_number(reference or "")
    return None if wanted is None else _last_number(text) == wanted


def _last_number(text: str) -> Decimal | None:
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None
