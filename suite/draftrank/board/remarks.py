"""What a reader should know of a draft that its figures do not say."""

from __future__ import annotations

from collections.abc import Callable

from draftrank.measure.records import BASELINE
from draftrank.measure.summaries.summary import ArmSummary, SessionSummary

SELDOM = 0.1
"""Share of steps with a proposal below which a draft is hardly more than plain decoding."""

MIN_KNOWN_SHARE = 0.97
"""Share of a task's tokens that a trimmed head knows, below which its page warns. A token that it does not know is always
rejected. A draft that agrees with the target on four tokens of five emits 1 ÷ (1 − 0.8) = 5 a step; if it knows a share s
of them, 1 ÷ (1 − 0.8 s): at 0.97, a tenth less."""


def remarks_on(summary: SessionSummary, arm: ArmSummary) -> tuple[str, ...]:
    """Every remark that holds for a draft in a session, in the order of `REMARKS`."""
    if arm.arm.draft is None:
        return ()
    return tuple(text for remark in REMARKS if (text := remark(summary, arm)) is not None)


def _zeros_without_kernel(summary: SessionSummary, arm: ArmSummary) -> str | None:
    assert arm.arm.draft is not None
    if "sparsity" not in arm.arm.draft.techniques or summary.session.device != "cpu":
        return None
    return "Its zeros save no time here: kernels for CPU multiply them like any number."


def _short_window(summary: SessionSummary, arm: ArmSummary) -> str | None:
    window = arm.arm.draft.context_window if arm.arm.draft else None
    trials = summary.trials.get(arm.arm.id, ())
    # The last token was chosen behind all but itself.
    beyond = {
        trial.cell[:3]
        for trial in trials
        if window is not None and trial.prompt_tokens + len(trial.token_ids) - 1 > window
    }
    if not beyond:
        return None
    of = len({trial.cell[:3] for trial in trials})
    return f"It reads at most {window} tokens: in {len(beyond)} of {of} prompt turns it proposed nothing behind them."


def _seldom(_: SessionSummary, arm: ArmSummary) -> str | None:
    acceptance = arm.acceptance
    if not acceptance.steps or not acceptance.offered or acceptance.offered[0] >= SELDOM * acceptance.steps:
        return None
    share = acceptance.offered[0] / acceptance.steps
    return f"It proposed something in {share:.1%} of its steps; all others are plain decoding."


def _small_vocabulary(_: SessionSummary, arm: ArmSummary) -> str | None:
    shares = _known_shares(arm, below=MIN_KNOWN_SHARE)
    if shares is None or _vocabulary_share(arm) is not None:
        return None
    return (
        f"Its trimmed head knows only {shares} of the tokens that the target writes, and every other token is rejected: "
        "raise keep_tokens, or count tokens in text of this kind."
    )


def _other_vocabulary(_: SessionSummary, arm: ArmSummary) -> str | None:
    share, of_outputs = _vocabulary_share(arm), _known_shares(arm)
    if share is None or of_outputs is None:
        return None
    return (
        f"Its tokenizer is not the target's: it can propose {share:.1%} of the target's vocabulary, and {of_outputs} of the "
        "tokens that the target writes."
    )


def _vocabulary_share(arm: ArmSummary) -> float | None:
    return arm.arm.draft.vocabulary_share if arm.arm.draft is not None else None


def _known_shares(arm: ArmSummary, below: float | None = None) -> str | None:
    """The smallest and the largest share of a task's output that the draft can propose, of all tasks or of those below a
    share; None without any."""
    found = sorted(
        (task.known_share, task.task)
        for task in arm.tasks
        if task.known_share is not None and (below is None or task.known_share < below)
    )
    ends = (found[0], found[-1])[: len(found)] if found else ()
    return " to ".join(f"{100 * share:.1f} % in {task}" for share, task in ends) or None


def _fallback(summary: SessionSummary, arm: ArmSummary) -> str | None:
    """The target's, which every arm waits for, and the draft's own."""
    target = next((one.fallback for one in summary.session.arms if one.id == BASELINE), None)
    found = [
        f"{whose} ({told})"
        for whose, told in (("the target", target), ("the draft", arm.arm.fallback))
        if told
    ]
    if not found:
        return None
    return (
        f"The backend's fastest way of computing gives other logits than transformers for {' and '.join(found)}, so a slower "
        "one was taken."
    )


def _text_not_compared(_: SessionSummary, arm: ArmSummary) -> str | None:
    if arm.arm.draft is None or arm.arm.draft.text_compared != "nothing":
        return None
    return (
        "Text it was made with was not compared with the prompts it was measured on: neither the text nor hashes of it "
        "were there."
    )


REMARKS: tuple[Callable[[SessionSummary, ArmSummary], str | None], ...] = (
    _zeros_without_kernel,
    _short_window,
    _seldom,
    _small_vocabulary,
    _other_vocabulary,
    _text_not_compared,
    _fallback,
)
