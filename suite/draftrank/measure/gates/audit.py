"""Whether the records of single trials can be true: counts, outputs and times that must fit each other.

`Trial` refuses what cannot even be read; this finds what can be read and cannot have happened. Each
function yields one sentence per contradiction, for the gates in `plausibility`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from draftrank.measure.records import Arm, SessionTask, Trial

_COPYING = {"n-gram", "suffix"}
"""Techniques, as records name them, that need no forward of a draft's model to propose."""
TIME_TOLERANCE_S = 1e-6
"""What rounding may add to a sum of seconds."""


@dataclass(frozen=True, slots=True)
class Ends:
    """What the baseline's outputs show of the target's stop tokens."""

    stop: frozenset[int]
    """Tokens that ended an output as `stop`."""
    text: frozenset[int]
    """Tokens after which an output went on."""

    @classmethod
    def seen_in(cls, baseline: Iterable[Trial]) -> Ends:
        """Reads them off the baseline's trials."""
        stop: set[int] = set()
        text: set[int] = set()
        for trial in baseline:
            text.update(trial.token_ids[:-1])
            if trial.finish == "stop":
                stop.add(trial.token_ids[-1])
        return cls(frozenset(stop), frozenset(text - stop))


def first_of(faults: Iterable[str]) -> str | None:
    """The first fault, and how many more there are; None without any."""
    found = list(faults)
    if not found:
        return None
    return found[0] + (f" (and {len(found) - 1} more)" if len(found) > 1 else "")


def place_of(trial: Trial) -> str:
    """For people: which output of which arm."""
    return f"{trial.task}/{trial.prompt} (turn {trial.turn}, repeat {trial.repeat}) of {trial.arm}"


def count_faults(trial: Trial, arm: Arm) -> Iterator[str]:
    """Contradictions between a trial's histogram, what it offered, proposed and ran, and its arm's k."""
    k, histogram, offered = arm.num_speculative_tokens, trial.accept_histogram, trial.offered
    if len(histogram) != k + 1:
        yield f"the histogram has {len(histogram)} entries where k+1 = {k + 1}"
        return
    accepted = [sum(histogram[position:]) for position in range(k + 1)]  # steps that took at least so many
    if any(accepted[position + 1] > count for position, count in enumerate(offered)):
        yield "more tokens were accepted than offered"
    if any(count > accepted[position] for position, count in enumerate(offered)):
        yield "tokens were offered behind a rejected one"
    if trial.proposed < sum(offered):
        yield f"{trial.proposed} tokens were proposed but {sum(offered)} offered"
    if trial.proposed > k * trial.steps:
        yield f"{trial.proposed} tokens were proposed in {trial.steps} steps of at most {k}"
    # What stands behind a stop token in the last step was verified and does not count as proposed.
    verified = trial.proposed + (k if trial.finish == "stop" else 0)
    if trial.proposal_sizes is not None:
        verified = sum(size * steps for size, steps in enumerate(trial.proposal_sizes))
        if not trial.proposed <= verified <= trial.proposed + (k if trial.finish == "stop" else 0):
            yield f"{trial.proposed} tokens were proposed but {verified} verified"
    # One forward a token, and at most one a step for a token that was then not proposed.
    if trial.draft_forwards > (verified + trial.steps if k else 0):
        yield f"{trial.draft_forwards} forwards of the draft for {verified} proposed tokens"
    has_model = any(latency.part == "draft" for latency in arm.latencies)
    techniques = set(arm.draft.techniques) if arm.draft is not None else set()
    copies = bool(techniques & _COPYING) and bool(techniques - _COPYING)
    if has_model and not copies and offered and trial.draft_forwards < offered[0]:
        yield f"{trial.draft_forwards} forwards of the draft in {offered[0]} steps that proposed"


def output_faults(trial: Trial, task: SessionTask, ends: Ends) -> Iterator[str]:
    """Contradictions between an output, its limit, and what is said to have ended it."""
    tokens, limit = len(trial.token_ids), task.max_new_tokens
    if tokens > limit:
        yield f"{tokens} tokens where {limit} are the limit"
    elif trial.finish == "length" and tokens < limit:
        yield f"ended by the length limit after {tokens} of {limit} tokens"
    if any(token in ends.stop for token in trial.token_ids[:-1]):
        yield "it goes on behind a stop token"
    last = trial.token_ids[-1]
    if trial.finish == "stop" and last in ends.text:
        yield f"ended as by a stop token, but {last} is none"
    if trial.finish == "length" and last in ends.stop:
        yield "ended by a stop token, but the limit is named"


def time_faults(trial: Trial) -> Iterator[str]:
    """Contradictions between the parts of a trial's time."""
    parts = trial.propose_s + trial.verify_s
    if parts > trial.decode_s * (1 + TIME_TOLERANCE_S) + TIME_TOLERANCE_S:
        yield f"its parts took {parts:.6f} s of {trial.decode_s:.6f} s"
    if trial.steps and trial.decode_s == 0:
        yield f"{trial.steps} steps took no time"
    elif trial.steps and trial.verify_s == 0:
        yield f"{trial.steps} forwards of the target took no time"
    if trial.prefill_s == 0:
        yield "its first token took no time"


def plan_faults(trials: Iterable[Trial], tasks: Collection[SessionTask]) -> Iterator[str]:
    """Trials of one arm that the session did not plan, and outputs that it holds twice."""
    planned = {
        (task.task, prompt, turn)
        for task in tasks
        for prompt, turns in zip(task.prompts, task.turns, strict=False)
        for turn in range(turns)
    }
    seen = set()
    for trial in trials:
        if trial.cell[:3] not in planned:
            yield f"{place_of(trial)} is not in its plan"
        if trial.cell in seen:
            yield f"{place_of(trial)} is there twice"
        seen.add(trial.cell)


def prompt_faults(pairs: Iterable[tuple[Trial, Trial]]) -> Iterator[str]:
    """Pairs of trials of one cell whose prompts cannot have been the same."""
    for baseline, other in pairs:
        if baseline.prompt_tokens != other.prompt_tokens:
            yield (
                f"{place_of(other)} continues {other.prompt_tokens} tokens, "
                f"the baseline's {baseline.prompt_tokens}"
            )
