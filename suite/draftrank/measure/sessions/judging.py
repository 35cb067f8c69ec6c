"""A look at outputs after their time was taken: where they left the target's own, how good they are, and whether a
step proposed what a fresh cache would."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from draftrank.measure.evidence import Divergence, Judgement, Quality
from draftrank.measure.fidelity.divergence import first_difference
from draftrank.measure.fidelity.quality import is_correct, mean_log_likelihood, rouge_l
from draftrank.measure.records import BASELINE, Trial
from draftrank.measure.sessions.schedule import Block

if TYPE_CHECKING:
    from draftrank.engine.backends.base import Runtime
    from draftrank.measure.sessions.bench import Bench

_TOKENS_BEFORE = 24
"""Tokens kept as text of what both outputs share before they part."""
_TOKENS_AHEAD = 16
"""Tokens kept as text of how each goes on."""


def judge_block(
    bench: Bench, block: Block, answers: Sequence[Sequence[int]], trials: Sequence[Trial]
) -> Iterator[Trial]:
    """The trials of one prompt turn that there is something to say of, with their judgement.

    `answers` are the target's to the turns before, `trials` all arms' of this one, every attempt; those judged already
    are left out.
    """
    baselines = {trial.attempt: trial for trial in trials if trial.arm == BASELINE}
    with_quality = bench.lossy_arms | {BASELINE} if bench.lossy_arms else frozenset[str]()
    for trial in trials:
        baseline = baselines.get(trial.attempt)
        if trial.judgement is not None or baseline is None:
            continue
        prompt = bench.texts.render(block.task, block.prompt, block.turn, answers)
        divergence = quality = None
        index = first_difference(baseline.token_ids, trial.token_ids) if bench.mode.greedy else None
        if index is not None:
            divergence = find_divergence(
                bench.target, prompt, baseline.token_ids, trial.token_ids, index, bench.texts.text
            )
        if trial.arm in with_quality:
            quality = Quality(
                log_likelihood=mean_log_likelihood(bench.target, prompt, trial.token_ids),
                rouge_l=rouge_l(trial.token_ids, baseline.token_ids),
                correct=is_correct(bench.texts.text(trial.token_ids), bench.texts.reference_answer(block)),
            )
        proposal = bench.check_proposal(trial, prompt)
        if divergence or quality or proposal:
            judgement = Judgement(divergence=divergence, quality=quality, proposal=proposal)
            yield trial.model_copy(update={"judgement": judgement})


def find_divergence(
    target: Runtime,
    prompt: Sequence[int],
    baseline: Sequence[int],
    other: Sequence[int],
    index: int,
    text: Callable[[Sequence[int]], str],
) -> Divergence:
    """What the target, reading one token at a time, says of the place where two outputs of a prompt part.

    `index` is that of the first token that differs, `text` decodes tokens. The target's sequence is lost.
    """
    target.reset()
    target.reserve(len(prompt) + index + 1)
    logits = target.forward(prompt, keep=1)
    for token in baseline[:index]:
        logits = target.forward((token,))
    row = logits[-1].float()
    best = float(row.max())
    gaps = [best - float(row[output[index]]) if index < len(output) else None for output in (other, baseline)]
    ahead = slice(index, index + _TOKENS_AHEAD)
    return Divergence(
        index=index,
        gap=gaps[0],
        baseline_gap=gaps[1],
        before=text(baseline[max(0, index - _TOKENS_BEFORE) : index]),
        text=text(other[ahead]),
        baseline_text=text(baseline[ahead]),
    )
