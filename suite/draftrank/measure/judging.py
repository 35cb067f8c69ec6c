"""A look at outputs after their time was taken: where and how they left the target's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from draftrank.measure.evidence import Divergence, Judgement
from draftrank.measure.fidelity import first_difference
from draftrank.measure.records import BASELINE, Trial
from draftrank.measure.schedule import Block

if TYPE_CHECKING:
    from draftrank.decoding.runtime import Runtime
    from draftrank.measure.bench import Bench


def judge_block(
    bench: Bench, block: Block, answers: Sequence[Sequence[int]], trials: Sequence[Trial]
) -> Iterator[Trial]:
    """The trials of one prompt turn that there is something to say of, with their judgement.

    Args:
        bench: holds the target.
        block: the prompt turn.
        answers: the target's answers to the turns before.
        trials: all arms' trials of it, every attempt; those judged already are left out.
    """
    if not bench.mode.greedy:
        return
    baselines = {trial.attempt: trial for trial in trials if trial.arm == BASELINE}
    for trial in trials:
        baseline = baselines.get(trial.attempt)
        if trial.judgement is not None or baseline is None:
            continue
        index = first_difference(baseline.token_ids, trial.token_ids)
        if index is not None:
            prompt = bench.render(block.task, block.prompt, block.turn, answers)
            found = find_divergence(bench.target, prompt, baseline.token_ids, trial.token_ids, index)
            yield trial.model_copy(update={"judgement": Judgement(divergence=found)})


def find_divergence(
    target: Runtime, prompt: Sequence[int], baseline: Sequence[int], other: Sequence[int], index: int
) -> Divergence:
    """What the target, fed one token at a time, says of the place where two outputs part.

    Args:
        target: its sequence is lost.
        prompt: what both outputs continue.
        baseline: the baseline's output.
        other: the other arm's output.
        index: index of the first token that differs.
    """
    target.reset()
    target.reserve(len(prompt) + index + 1)
    logits = target.feed(prompt, keep=1)
    for token in baseline[:index]:
        logits = target.feed((token,))
    row = logits[-1].float()
    best = float(row.max())
    gaps = [best - float(row[output[index]]) if index < len(output) else None for output in (other, baseline)]
    return Divergence(index=index, gap=gaps[0], baseline_gap=gaps[1])
