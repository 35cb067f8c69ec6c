"""The terms of the board, each defined once. The methodology page prints this table."""

from __future__ import annotations

from typing import NamedTuple

from draftrank.measure.statistics.log_ratio import CONFIDENCE, MIN_PROMPTS
from draftrank.measure.summaries.summary import MIN_SHOWN_PROMPTS


class Word(NamedTuple):
    """A term and its definition."""

    word: str
    meaning: str


WORDS: tuple[Word, ...] = (
    Word("target", "The model whose decoding is accelerated."),
    Word(
        "draft",
        "What proposes tokens for the target: a draft model, an EAGLE head, text to copy from, or the "
        "target's own early layers.",
    ),
    Word("draft model", "A model of its own that proposes tokens autoregressively."),
    Word(
        "EAGLE head",
        "A draft model that reads hidden states of the target. Only a head of EAGLE-3's published "
        "architecture is called EAGLE-3.",
    ),
    Word(
        "prompt lookup (n-gram)", "Copying what followed the latest earlier occurrence of the last n tokens."
    ),
    Word(
        "suffix decoding",
        "Copying what followed earlier occurrences of the longest matching suffix, weighted by "
        "how often each token followed.",
    ),
    Word("early exit", "Proposing with the target's own first layers."),
    Word("cascade", "Copying where the context repeats itself, and a draft model where it does not."),
    Word(
        "token tree",
        "Several proposed continuations that share their beginnings. One forward verifies all of them with a tree "
        "attention mask.",
    ),
    Word("k", "num_speculative_tokens: the maximum number of tokens proposed per step."),
    Word("step", "One verification forward of the target over at most k+1 positions."),
    Word(
        "baseline",
        "Plain autoregressive decoding by the same engine, in the same session, backend and dtype. Two arms "
        "measure it; their difference (A/A) is the session's own noise.",
    ),
    Word(
        "session",
        "One target on one machine in one process. All arms take turns on each prompt, so that drift affects "
        "all alike.",
    ),
    Word(
        "arm",
        "One way of decoding in a session: the baseline, its control, a draft, or a reference implementation.",
    ),
    Word(
        "backend",
        "The code that runs the forwards of target and draft: transformers, cpp, cuda-graphs or llama.cpp.",
    ),
    Word(
        "acceptance length",
        "Emitted tokens ÷ steps: a ratio of sums over all steps after the prefill. The bonus token "
        "counts; accepted tokens past the end or the length limit do not. It lies between 1 and k+1; autoregressive "
        "decoding has exactly 1.",
    ),
    Word("acceptance rate", "Accepted ÷ proposed tokens."),
    Word(
        "acceptance rate by position",
        "For position i, the share of steps whose i-th token was accepted, given that it was "
        "proposed and all before it were accepted.",
    ),
    Word("accept histogram", "The numbers of steps that accepted 0, 1, … k tokens."),
    Word(
        "draft cost c",
        "Median draft forward ÷ median target forward, both of a single token, timed in the same process. For "
        "a draft that runs no forwards: its mean time to propose per step ÷ that target forward.",
    ),
    Word(
        "decode time",
        "From the arrival of the first generated token to that of the last. The prefill (time to first "
        "token, TTFT) is recorded apart.",
    ),
    Word("tokens per second", "Tokens emitted by steps ÷ decode time, sums over all outputs."),
    Word(
        "speedup of a task",
        "(Σ baseline decode seconds ÷ Σ baseline tokens) ÷ (Σ draft decode seconds ÷ Σ draft tokens), "
        "over the same prompts, turns and repeats of the same session.",
    ),
    Word("overall speedup", "Geometric mean of the tasks' speedups."),
    Word(
        "predicted speedup",
        "The speedup that forward times and acceptance alone give. No time of a trial enters it, except the lookup time of a draft without a model.",
    ),
    Word("engine efficiency", "Predicted decode time ÷ measured decode time."),
    Word(
        "interval",
        f"{CONFIDENCE:.0%} t-interval of the logarithm. Its error comes from leaving out each prompt with all its "
        "turns and repeats (jackknife), for each task by itself. Over tasks, the degrees of freedom are Welch and "
        f"Satterthwaite's. A task with fewer than {MIN_PROMPTS} prompts has none, and one with fewer than "
        f"{MIN_SHOWN_PROMPTS} is shown without.",
    ),
    Word(
        "rank",
        "From 1 + the number of rows surely ahead, to the number of rows minus those surely behind. Surely ahead: "
        "faster with a probability of at least 1 − 2.5 % ÷ (rows − 1), so that a range contains the true rank 95 % of the "
        "time. Rows of one session are compared trial by trial on the same prompts; rows of different sessions by their "
        "speedups as independent figures. Rows that cannot be told apart share a range, such as 2–4.",
    ),
    Word(
        "outlier",
        "A trial whose seconds per step, relative to its arm's and to those of the arms beside it, lie beyond 3.5 "
        "robust standard deviations and 5 %. It is marked, shown, and counted like all others.",
    ),
    Word("divergence", "The first token at which a greedy output differs from the baseline's."),
    Word(
        "numerical tie",
        "A divergence that rounding explains: both tokens lie within the session's measured rounding of the "
        "target's best logit; in fp32, both have exactly the best logit. Rounding depends on how many tokens share a forward.",
    ),
    Word(
        "fidelity",
        "identical: all greedy outputs equal the baseline's. ties: all divergences are numerical ties. breaks: "
        "at least one is not.",
    ),
    Word(
        "lossless",
        "A draft whose verification rule leaves the target's output, or its distribution, unchanged.",
    ),
    Word(
        "lossy",
        "A draft whose rule may change the output on purpose (typical acceptance). Such rows are ranked among "
        "themselves, with the quality of their outputs.",
    ),
    Word(
        "parity",
        "Acceptance length in another engine ÷ acceptance length in this engine, of the same draft on the same prompts, with "
        "its interval.",
    ),
    Word("contamination check", "The comparison of a draft's training text with the prompts of its tasks."),
)

SERVING_WORDS: tuple[Word, ...] = (
    Word(
        "server",
        "One process of an engine (vLLM, llama-server, …), as declared. All servers of a session are alike but for their "
        "speculative configuration.",
    ),
    Word("concurrency", "Requests in flight at once in a closed loop: when one ends, the next is sent."),
    Word("round", "All prompts of a session, sent once to one server at one concurrency."),
    Word(
        "block",
        "One round of every arm at one concurrency, one after another, in an order drawn anew for each block.",
    ),
    Word("throughput", "Output tokens of all complete requests ÷ wall seconds of their rounds."),
    Word(
        "speedup at concurrency c",
        "Throughput of the drafted server ÷ that of the plain server in the same block: the geometric mean over blocks, with "
        "the 95 % t-interval of its logarithm.",
    ),
    Word(
        "switch-off point",
        "The smallest measured concurrency at which the interval of the speedup no longer lies above 1. Its uncertainty "
        "reaches from the last concurrency that surely pays to the first that surely does not.",
    ),
    Word(
        "TTFT", "Time to first token: from sending a request to its first output token. Median over requests."
    ),
    Word("TPOT", "Mean time per output token of a request after its first. Median over requests."),
    Word("tokens/s per user", "1 ÷ the median TPOT: what one of the users sees while all are served."),
    Word(
        "acceptance length of a server",
        "Output tokens after each request's first ÷ steps, where steps are these tokens less the accepted ones. Accepted tokens "
        "come from the engine's figures of each request, else from its counters around a round.",
    ),
    Word(
        "best k",
        "Of a draft measured with several k, the one that is surely faster at a concurrency than each other one, by the rule of "
        "ranks; where there is none, all that no other one is surely faster than, e.g. 2 or 4.",
    ),
)
"""Terms of serving boards beside `WORDS`."""
