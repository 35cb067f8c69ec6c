"""The words of the board, each defined once: the methodology page prints this table."""

from __future__ import annotations

from typing import NamedTuple

from draftrank.measure.statistics.log_ratio import CONFIDENCE, MIN_PROMPTS


class Word(NamedTuple):
    """A word and what it means here."""

    word: str
    meaning: str


WORDS: tuple[Word, ...] = (
    Word("target", "The model being accelerated."),
    Word(
        "draft",
        "What proposes tokens for the target: a draft model, an EAGLE head, n-grams, suffix decoding, early exit, or a cascade of them.",
    ),
    Word("k", "num_speculative_tokens: tokens proposed per step at most."),
    Word("step", "One verification forward of the target, over at most k+1 positions."),
    Word(
        "baseline",
        "Plain autoregressive decoding with the same backend and dtype in the same session. It runs in two arms; "
        "the difference between them (A/A) is the session's noise.",
    ),
    Word(
        "session",
        "One target on one machine. All arms take turns on each prompt, so that drift affects them equally.",
    ),
    Word(
        "acceptance length",
        "Emitted tokens ÷ steps: a ratio of sums over all steps after the prefill. It counts the bonus "
        "token; accepted tokens past the end or the length limit are not counted. Always between 1 and "
        "k+1; autoregressive decoding has exactly 1.",
    ),
    Word("acceptance rate", "Accepted ÷ proposed tokens."),
    Word(
        "acceptance by position",
        "For each position, the share of steps whose token there was accepted, given that it was "
        "proposed and all before it were accepted.",
    ),
    Word("accept histogram", "How many steps accepted 0, 1, … k tokens."),
    Word(
        "draft cost c",
        "Median draft forward ÷ median target forward, both of a single token, timed in the same "
        "process. For a draft that runs no forwards: its mean time to propose per step ÷ that target "
        "forward.",
    ),
    Word(
        "decode time",
        "From the first generated token's arrival to the last token's. The prefill (time to the first "
        "token) is kept apart.",
    ),
    Word("tokens per second", "Tokens emitted by steps ÷ decode time, sums over all outputs."),
    Word(
        "speedup of a task",
        "(Σ baseline decode seconds ÷ Σ baseline tokens) ÷ (Σ draft decode seconds ÷ Σ draft tokens), "
        "over the same prompts, turns and repeats of the same session.",
    ),
    Word("overall speedup", "Geometric mean of the tasks' speedups."),
    Word(
        "interval",
        f"{CONFIDENCE:.0%} t-interval of the logarithm. Its error comes from leaving out each prompt with "
        "all its turns and repeats (jackknife), each task by itself; over tasks the degrees of freedom are "
        f"Welch & Satterthwaite's. A task with fewer than {MIN_PROMPTS} prompts has none.",
    ),
    Word(
        "rank",
        "From 1 + the rows surely ahead, to the number of rows less those surely behind. Surely ahead: faster "
        "with a probability of at least 1 − 2.5 % ÷ (rows − 1), so that a range holds the true rank 95 % of "
        "the time. Rows of one session are compared trial by trial on the same prompts, those of different "
        "sessions by their speedups as independent figures. Rows that cannot be told apart have overlapping ranges, such as 1–3 and 2–4. Boards are sorted by range.",
    ),
    Word(
        "outlier",
        "A trial whose seconds per step, compared with those of its arm and of the arms beside it, lie beyond "
        "3.5 robust standard deviations and 5 %. It is flagged, shown, and counted like all others.",
    ),
    Word(
        "fidelity",
        "Whether the emitted token ids are the baseline's, output by output, in greedy decoding. In "
        "fp32 any difference is a break, unless the target gives both tokens exactly the same logit. In every other "
        "dtype rounding depends on how many tokens share a forward, so a difference "
        "is a tie where both tokens lie within the session's measured rounding of the target's best logit, and a break "
        "otherwise.",
    ),
    Word(
        "lossy",
        "A draft whose rule may change the output on purpose (typical acceptance). Such rows are ranked "
        "among themselves, with the quality of their outputs.",
    ),
)
