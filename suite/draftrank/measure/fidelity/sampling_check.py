"""Whether an arm's samples follow the target's own distribution: a chi-square test within the session.

The loop decodes the same context many times, each with its own seed, and the first two tokens of every output
are counted. The second one was proposed, judged and perhaps replaced. The expected distribution is computed
from the target alone: p(first) · p(second | first). Property tests show that the rule is exact on small
vocabularies. This check shows that everything around it works for this draft on this machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from scipy.special import chdtrc

from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.engine.loop import Request, speculative
from draftrank.engine.proposer import Proposer
from draftrank.engine.sampling import Sampler
from draftrank.measure.evidence import SamplingCheck

if TYPE_CHECKING:
    from draftrank.engine.backends.base import Runtime

DRAWS = 100
"""Outputs drawn for the test, each with its own seed."""
NEW_TOKENS = 3
"""One more than is counted: the last token of an output is never proposed."""
MIN_EXPECTED = 5.0
"""Expected count below which outcomes share a bin (Cochran's rule)."""
MIN_LIKELY = 0.01
"""Tokens rarer than this share a bin in any case."""

Outcome = tuple[int, int]


def check_sampling(
    target: Runtime,
    proposer: Proposer,
    prompt: Sequence[int],
    mode: DecodingMode,
    num_speculative_tokens: int,
    *,
    place: tuple[str, str],
    draws: int = DRAWS,
) -> SamplingCheck:
    """Draws outputs, with seeds 0, 1, … of the check's own, and compares them with the target's distribution.

    The target's sequence is lost; `place` is task and prompt, for the record.
    """
    request = Request(tuple(prompt), NEW_TOKENS, mode=mode)
    counts: Counter[Outcome] = Counter()
    for seed in range(draws):
        decoding = speculative(target, proposer, replace(request, seed=seed), num_speculative_tokens)
        counts[decoding.token_ids[0], decoding.token_ids[1]] += 1
    observed, expected = _binned(counts, _distribution(target, prompt, mode), draws)
    statistic = sum((seen - due) ** 2 / due for seen, due in zip(observed, expected, strict=True))
    return SamplingCheck(
        task=place[0],
        prompt=place[1],
        draws=draws,
        bins=len(expected),
        statistic=statistic,
        p_value=float(chdtrc(len(expected) - 1, statistic)) if len(expected) > 1 else 1.0,
    )


def _distribution(
    target: Runtime, prompt: Sequence[int], mode: DecodingMode
) -> dict[int, tuple[float, dict[int, float]]]:
    """For each likely first token: its probability, and those of the likely tokens after it."""
    sampler = Sampler(mode)
    target.reset()
    target.reserve(len(prompt) + 1)
    first = sampler.probabilities(target.forward(prompt, keep=1))[0]
    found = {}
    for token in (first >= MIN_LIKELY).nonzero().flatten().tolist():
        second = sampler.probabilities(target.forward((token,)))[0]
        target.rollback(1)
        likely = (second >= MIN_LIKELY).nonzero().flatten().tolist()
        found[token] = (float(first[token]), dict(zip(likely, second[likely].tolist(), strict=True)))
    return found


def _binned(
    counts: Counter[Outcome], distribution: dict[int, tuple[float, dict[int, float]]], draws: int
) -> tuple[list[float], list[float]]:
    """Observed and expected counts: a bin for each pair that is expected often enough, one for the rest
    of each first token, one for all that is rare. Which bins there are depends on the target alone."""
    observed: list[float] = []
    expected: list[float] = []
    rest_seen, rest_due = float(draws), float(draws)
    for first, (likely, seconds) in distribution.items():
        seen_of_first = float(sum(count for (one, _), count in counts.items() if one == first))
        due_of_first = draws * likely
        for second, probability in seconds.items():
            due = draws * likely * probability
            if due >= MIN_EXPECTED:
                observed.append(float(counts[first, second]))
                expected.append(due)
                seen_of_first, due_of_first = seen_of_first - observed[-1], due_of_first - due
                rest_seen, rest_due = rest_seen - observed[-1], rest_due - due
        if due_of_first >= MIN_EXPECTED:
            observed.append(seen_of_first)
            expected.append(due_of_first)
            rest_seen, rest_due = rest_seen - seen_of_first, rest_due - due_of_first
    if expected and rest_due < MIN_EXPECTED:
        rarest = expected.index(min(expected))
        observed[rarest] += rest_seen
        expected[rarest] += max(0.0, rest_due)
    else:
        observed.append(rest_seen)
        expected.append(rest_due)
    return observed, expected
