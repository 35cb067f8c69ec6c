"""What all stored facts have in common, and what speaks for or against a number: how the machine was, how outputs differ,
what was tested.

Only what was observed is kept here. Whether it is good enough is decided by the gates, each time anew.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
Excerpt = Annotated[str, StringConstraints(max_length=4000)]
"""A few tokens as text."""
JobUrl = Annotated[
    str,
    StringConstraints(pattern=r"^https://[A-Za-z0-9.-]+(:[0-9]+)?/[A-Za-z0-9._~/#?=&%-]*$", max_length=500),
]
"""The address of a job's page. It becomes a link of the site, so nothing but plain https passes."""


class Record(BaseModel):
    """A stored fact: complete, unchangeable, and refusing what it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def utc_now() -> str:
    """The time as records hold it: UTC, ISO 8601, whole milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Conditions(Record):
    """What the machine did while one trial ran, beside running it. None: not readable here.

    All None where the trial was too short for the counters to tell: then the next long enough report
    covers it too.
    """

    others_cpus: NotNegative | None = None
    """Processors kept busy by other processes, on average, of those that this process may use."""
    steal: Share | None = None
    """Share of the processors' time that the hypervisor gave to others."""
    frequency_hz: NotNegative | None = None
    """Mean frequency of the processors that compute, at the trial's end."""
    quota_throttled: Share | None = None
    """Share of the time in which the container's processor quota stopped this process."""
    memory_stalled: Share | None = None
    """Share of the time in which some task waited for memory."""
    gpu_clock_hz: NotNegative | None = None
    """The GPU's clock at the trial's end."""
    gpu_throttled_by: tuple[str, ...] = ()
    """Reasons for which the driver held the GPU's clock down."""
    gpu_others: Count | None = None
    """Other processes that compute on the GPU."""


class Divergence(Record):
    """The first place at which a greedy output left the baseline's, as the target sees it there.

    The target reads prompt and common tokens one at a time, as the baseline was; gaps are differences of
    its logits to that of its best token.
    """

    index: Count
    """Index of the first emitted token that differs."""
    gap: NotNegative | None
    """Gap of the token that this arm emitted; None when its output ended there."""
    baseline_gap: NotNegative | None
    """Gap of the token that the baseline emitted; None when its output ended there."""
    before: Excerpt | None = None
    """End of the text that both outputs share; None in sessions of older versions."""
    text: Excerpt | None = None
    """How this arm's output goes on; empty when it ended there."""
    baseline_text: Excerpt | None = None
    """How the baseline's output goes on; empty when it ended there."""


class Quality(Record):
    """How good an output is that need not be the target's own."""

    log_likelihood: float
    """Mean natural logarithm of the target's probability of each emitted token."""
    rouge_l: Share | None = None
    """ROUGE-L F1 of the text against the baseline's."""
    correct: bool | None = None
    """Whether the answer is the task's; None for tasks without answers."""


class ProposalCheck(Record):
    """What a draft that has read the text anew thinks of one step's proposal; see `fidelity.stale_proposals`."""

    tokens: Count
    """Tokens of the output that stood before the step."""
    gap: NotNegative | None
    """Largest gap of the proposed tokens to the draft's best ones, in logits; None where there is none: other tokens
    were copied from the text, or the draft cannot propose these."""
    rounding: NotNegative
    """By how much the gap of a token differs between a cache that read the output in one forward and one that read it token
    by token; 0 where the first one prefers no other token."""


class Judgement(Record):
    """What a look at one output gave."""

    divergence: Divergence | None = None
    """Where a greedy output left the baseline's."""
    quality: Quality | None = None
    """For arms with a lossy rule, and for the baseline beside them."""
    proposal: ProposalCheck | None = None
    """For arms that propose, in the first repeat of greedy modes; None in trials of older versions."""


class Numerics(Record):
    """How far rounding moves logits between forwards of one token and of several, on the same tokens.

    For every position: the change of the gap between the two tokens that are best when tokens are read
    one at a time. A greedy choice can flip only where this gap is smaller than its change.
    """

    positions: Count
    """Positions compared, over all forward sizes."""
    forward_tokens: tuple[Annotated[int, Field(ge=2)], ...]
    """Sizes of forward that were set against one token at a time: each k+1 of the session."""
    quantiles: tuple[NotNegative, ...]
    """Absolute changes at 0 %, 1 %, … 100 %: 101 values, the last one the largest seen."""
    gap_quantiles: tuple[NotNegative, ...] = ()
    """The gaps themselves at 0 %, 1 %, … 100 %, once for each output token that was looked at."""


class SamplingCheck(Record):
    """Chi-square test of an arm's first two sampled tokens against the target's own distribution."""

    task: str
    """Task of the prompt."""
    prompt: str
    """Prompt that was continued."""
    draws: Count
    """Outputs drawn, each with a seed of its own."""
    bins: Count
    """Outcomes told apart; rare ones share one."""
    statistic: NotNegative
    """Chi-square over the bins."""
    p_value: Share
    """Probability of a statistic as large if the distributions are equal."""


class Reference(Record):
    """What a reference arm ran instead of this engine."""

    implementation: str
    """Package and version."""
    method: Literal["generate", "assisted", "prompt_lookup"]
    """Plain decoding, with a draft model, or with n-grams of the context."""
    draft: str | None
    """Id of the draft that it used; None without one."""
    differs: tuple[str, ...]
    """How it differs from this engine's arm, in sentences."""


class Environment(Record):
    """The part of the fingerprint that may change between runs on one machine. None: not readable."""

    instruction_sets: tuple[str, ...] = ()
    """Those that matter for matrix products."""
    affinity: tuple[Count, ...] = ()
    """Processors that this process may run on."""
    quota_cpus: NotNegative | None = None
    """Processors' worth of time that the container may use."""
    memory_limit_bytes: Count | None = None
    """The container's memory limit."""
    memory_available_bytes: Count | None = None
    """Memory free for use at the start."""
    governor: str | None = None
    """Policy of the processor's frequency."""
    frequency_max_hz: NotNegative | None = None
    """Highest frequency of the processor."""
    interop_threads: Count | None = None
    """torch's threads between operations."""
    thread_variables: dict[str, str] = Field(default_factory=dict)
    """Environment variables that steer threads."""
    torch_build: str | None = None
    """torch's version with its build tag and its best instruction set."""
    load_average: NotNegative | None = None
    """Mean number of runnable processes in the last minute before the start."""
    gpu_driver: str | None = None
    """Version of the GPU's driver."""
    gpu_power_limit_w: NotNegative | None = None
    """The GPU's power limit."""
    gpu_clock_max_hz: NotNegative | None = None
    """The GPU's highest clock."""
    suite_commit: str | None = None
    """git commit of the workspace."""
    suite_dirty: bool | None = None
    """Whether the workspace had changes that are not committed."""
    job_url: JobUrl | None = None
    """Page of the continuous-integration job that ran the session."""
