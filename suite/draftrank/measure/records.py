"""What a session leaves behind: raw trials and everything needed to judge them.

Every number on the board is computed from these records and can be computed anew. They cross the
store and the result bundles unchanged, so they hold plain values only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from draftrank.catalog.backend import Device, RecordedBackend
from draftrank.catalog.base import Identifier, Sha256
from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.measure.evidence import (
    Conditions,
    Count,
    Environment,
    Judgement,
    Numerics,
    Record,
    Reference,
    SamplingCheck,
    Seconds,
)

ArmKind = Literal["baseline", "control", "draft", "reference"]
Finish = Literal["stop", "length"]
StoppedBy = Literal["repeats", "target_ci", "spread", "budget"]
DtypeName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,24}$")]
"""`fp32`, `bf16` or `fp16`; `int8` for torch's dynamic int8; of a GGUF file its own quantization, e.g. `q4_1`, and in
sessions of older versions `gguf`."""
TextCompared = Literal["text", "hashes", "nothing"]
BASELINE = "baseline"
CONTROL = "baseline-control"


def sha256_of_ids(token_ids: Iterable[object]) -> str:
    """sha256 of token ids, written in decimal and joined by commas."""
    return hashlib.sha256(",".join(map(str, token_ids)).encode()).hexdigest()


class Trial(Record):
    """One prompt turn decoded once by one arm."""

    arm: str
    """Id of the arm: a draft's id, `baseline` or `baseline-control`."""
    task: str
    """Id of the task."""
    prompt: str
    """Id of the prompt within the task."""
    turn: Count
    """Index of the user turn, from 0."""
    repeat: Count
    """Index of the repeat, from 0."""
    position: Count
    """Place of this arm among the arms that decoded the same prompt turn back to back."""
    process: Count
    """Number of the process that measured it; above 0 after an interrupted run went on."""
    started_at: str
    """UTC time, ISO 8601."""
    prompt_tokens: Count
    """Tokens of the prompt, read before the first new one."""
    token_ids: tuple[Count, ...]
    """Every emitted token; the first comes from the prefill."""
    finish: Finish
    """`stop`: a stop token ended it; `length`: the limit did."""
    steps: Count
    """Verification forwards of the target after the prefill (baseline: single-token forwards)."""
    accept_histogram: tuple[Count, ...]
    """Entry i: steps in which exactly i proposed tokens were accepted and emitted; length k+1."""
    offered: tuple[Count, ...]
    """Entry i: steps that proposed an (i+1)-th token and accepted the i before it; length k."""
    proposed: Count
    """Proposed tokens over all steps."""
    draft_forwards: Count
    """Forwards of the draft's model after its prefill; 0 for a draft without one."""
    prefill_s: Seconds
    """Seconds to the first token: the target's prefill and the draft's."""
    decode_s: Seconds
    """Seconds from the first token's arrival to the last token's."""
    propose_s: Seconds
    """Seconds of `decode_s` spent proposing."""
    verify_s: Seconds
    """Seconds of `decode_s` spent in target forwards."""
    attempt: Count = 0
    """Above 0 when all arms decoded the prompt turn once more because the machine was disturbed."""
    conditions: Conditions | None = None
    """What else the machine did meanwhile; None where it was not watched."""
    proposal_sizes: tuple[Count, ...] | None = None
    """Entry i: steps that verified exactly i proposed tokens, so i+1 positions; length k+1. None in trials
    of older versions."""
    judgement: Judgement | None = None
    """What a look at the output gave, after its time was taken; None when there was nothing to say."""

    @property
    def key(self) -> tuple[str, str, str, int, int, int]:
        """What makes a trial unique in its session: its arm, its cell and the attempt."""
        return (self.arm, *self.cell, self.attempt)

    @property
    def cell(self) -> tuple[str, str, int, int]:
        """Task, prompt, turn and repeat: what all arms have in common."""
        return (self.task, self.prompt, self.turn, self.repeat)

    @property
    def decode_tokens(self) -> int:
        """Tokens emitted by steps: all but the prefill's."""
        return len(self.token_ids) - 1

    @property
    def accepted(self) -> int:
        """Accepted and emitted tokens over all steps."""
        return sum(count * steps for count, steps in enumerate(self.accept_histogram))

    @property
    def token_ids_sha256(self) -> str:
        """Hash of the emitted tokens, for comparison without storing them twice."""
        return sha256_of_ids(self.token_ids)

    @model_validator(mode="after")
    def _adds_up(self) -> Trial:
        if not self.token_ids:
            raise ValueError("a trial emits at least one token")
        if self.steps != sum(self.accept_histogram):
            raise ValueError("steps differ from the histogram's sum")
        if self.decode_tokens != self.steps + self.accepted:
            raise ValueError("tokens differ from steps plus accepted tokens")
        if len(self.offered) != len(self.accept_histogram) - 1:
            raise ValueError("offered must have one entry fewer than the histogram")
        sizes = self.proposal_sizes
        if sizes is not None and (len(sizes) != len(self.accept_histogram) or sum(sizes) != self.steps):
            raise ValueError("proposal_sizes must have as many entries and steps as the histogram")
        return self


class PromptedTurn(Record):
    """One prompt turn of a measurement."""

    task: Identifier
    """Id of the task."""
    prompt: str
    """Id of the prompt within the task."""
    turn: Count
    """Index of the user turn, from 0; earlier answers are those without a draft."""
    prompt_tokens: Count
    """Tokens of the prompt."""


class ForwardLatency(Record):
    """Median time of one kind of forward, taken in the session's own process."""

    part: Literal["target", "draft"]
    """Whose forward."""
    tokens: Annotated[int, Field(ge=1)]
    """Positions of one forward."""
    context: Count
    """Tokens already held."""
    median_s: Seconds
    """Median seconds."""
    samples: Annotated[int, Field(ge=1)]
    """How many were timed."""


class DraftBuild(Record):
    """What was built from a recipe and at what cost."""

    recipe: dict[str, Any]
    """The recipe as declared (canonical form)."""
    recipe_sha256: Sha256
    """Identity of the recipe."""
    weights_sha256: Sha256 | None
    """Hash over the draft's weight files; None for a draft without weights of its own."""
    techniques: tuple[str, ...]
    """How it was made, for the board."""
    trained: bool
    """Whether weights were updated by gradient descent."""
    parameters: Count
    """Parameters the draft holds beside the target's; 0 without weights of its own."""
    bytes_on_disk: Count
    """Size of its weight files."""
    build_s: Seconds
    """Seconds the build took when it was made; 0 without one."""
    context_window: Count | None = None
    """Tokens that its model reads at most; None without weights of its own, and in sessions of older versions."""
    unknown_tokens: tuple[Count, ...] | None = None
    """Tokens of the baseline's outputs in this session that the draft can never propose, ascending: its trimmed head does
    not know them, or its vocabulary does not. None for a draft that knows all tokens, and in sessions of older versions."""
    vocabulary_share: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """Share of the target's vocabulary that a draft with another vocabulary can propose; None for a draft with the target's,
    and in sessions of older versions."""
    text_compared: TextCompared | None = None
    """By what the text that the draft was made with was compared with the prompts of the session's tasks: the `text`
    itself, kept `hashes` of it, or `nothing`, at least for a part of it. None for a draft made without text, and in
    sessions of older versions."""


def step_kinds(recipe: Mapping[str, Any]) -> tuple[str, ...]:
    """Kinds of a recorded recipe's steps, in order; empty where it has none."""
    draft = recipe.get("draft")
    steps = draft.get("steps") if isinstance(draft, Mapping) else None
    listed = steps if isinstance(steps, list | tuple) else ()
    return tuple(str(step.get("kind")) for step in listed if isinstance(step, Mapping))


class Arm(Record):
    """One way of decoding within a session."""

    id: str
    """Unique in the session."""
    kind: ArmKind
    """`baseline`, its A/A twin `control`, a `draft`, or a `reference`: another implementation."""
    num_speculative_tokens: Count
    """k; 0 for autoregressive arms."""
    draft: DraftBuild | None = None
    """The draft; None for autoregressive arms and for builds that failed."""
    peak_memory_bytes: Count | None = None
    """Peak memory of decoding with this arm: resident memory on CPU, allocated on CUDA."""
    latencies: tuple[ForwardLatency, ...] = ()
    """Forward times for this arm's cost."""
    failure: str | None = None
    """Why the arm has no or not all trials; None when it ran."""
    lossy: bool = False
    """Whether its rule may change the output on purpose."""
    sampling: SamplingCheck | None = None
    """Whether its samples follow the target's distribution; None in greedy modes."""
    reference: Reference | None = None
    """What a reference arm ran; None for all others."""
    backend: RecordedBackend | None = None
    """What ran the draft's forwards, or the target's where the draft has none; None in sessions of older versions."""
    dtype: DtypeName | None = None
    """What those forwards computed in; None in sessions of older versions."""
    fallback: str | None = None
    """How they were computed where the backend's fastest way gave other logits than transformers; None: the fastest way, and
    in sessions of older versions."""


class SessionTask(Record):
    """A task as this session used it."""

    task: str
    """Id of the task."""
    task_sha256: Sha256
    """Identity of the task."""
    prompts: tuple[str, ...]
    """Ids of the prompts, in order."""
    turns: tuple[Count, ...]
    """User turns of each prompt."""
    prompts_sha256: Sha256
    """Hash over the prompts' texts."""
    max_new_tokens: Count
    """Length limit."""
    rendered_sha256: Sha256 | None = None
    """Hash over the token ids that the prompts were rendered to, with empty answers; None in sessions of older
    versions."""

    @property
    def declared(self) -> SessionTask:
        """The part that its declaration alone decides."""
        return self.model_copy(update={"rendered_sha256": None})


class Machine(Record):
    """Where a session ran."""

    machine_class: str
    """The class ranks stay within, derived from the other fields."""
    cpu: str
    """Processor name."""
    cores: Count
    """Processors this process may use."""
    threads: Count
    """Threads torch computes with."""
    memory_bytes: Count
    """Main memory."""
    gpu: str | None
    """Accelerator in use; None on CPU."""
    platform: str
    """Operating system and machine type."""
    python: str
    """Python version."""
    packages: dict[str, str]
    """Versions of the packages that decide speed."""


class Measurement(Record):
    """What every measurement tells of itself: when, of what and where it was made."""

    id: str
    """Unique; begins with the UTC date."""
    created_at: str
    """UTC time, ISO 8601."""
    draftrank_version: str
    """Version of this package."""
    target: Identifier
    """Id of the target."""
    target_sha256: Sha256
    """Identity of the target's declaration."""
    target_weights_sha256: Sha256
    """Hash over the target's weight files."""
    dtype: DtypeName
    """What the target's forwards computed in."""
    device: Device
    """Where it ran."""
    machine: Machine
    """The machine it ran on."""
    suite: str
    """Id of the suite."""
    suite_sha256: Sha256
    """Identity of the suite."""
    tasks: tuple[SessionTask, ...]
    """Tasks with their prompts."""
    skipped_tasks: tuple[str, ...] = ()
    """Tasks of the suite whose data could not be had."""


class SessionHeader(Measurement):
    """What a session of either kind adds: it has a plan, and ends."""

    plan_sha256: Sha256
    """Hash of everything that decides what is measured: equal plans continue or reuse a session."""
    finished_at: str | None
    """UTC time of the last trial or round of a complete session; None while incomplete."""
    warnings: tuple[str, ...] = ()
    """What a reader should know."""
    environment: Environment | None = None
    """The rest of the fingerprint; None in sessions of older versions."""


class Session(SessionHeader):
    """One target measured on one machine with one dtype; holds arms that may be compared."""

    target: str
    """Id of the target."""
    target_parameters: Count
    """Parameters of the target."""
    backend: RecordedBackend
    """What ran the target's forwards, and those of every draft but those whose arm names another."""
    mode: DecodingMode
    """How tokens were chosen."""
    seed: Count
    """Seed of arm order."""
    repeats: Annotated[int, Field(ge=1)]
    """Repeats that every prompt gets at least."""
    arms: tuple[Arm, ...]
    """Which."""
    target_ci: Annotated[float, Field(gt=0.0)] | None = None
    """Half-width of every arm's relative 95 % interval at which repeating ends; None: it was not asked."""
    budget_s: Seconds | None = None
    """Seconds of decoding after which no repeat beyond the required ones goes on; None: none are made."""
    stopped_by: StoppedBy | None = None
    """What ended it: the required `repeats` were all it was given, `target_ci` was reached, the `spread`
    between prompts alone is wider (more repeats could not help), or the `budget` was spent."""
    numerics: Numerics | None = None
    """How rounding depends on the shape of a forward here; None where it was not measured (fp32)."""

    @property
    def backend_and_dtype(self) -> str:
        """Of the target, as they are shown."""
        return f"{self.backend} {self.dtype}"


class SessionResult(Record):
    """A session with its trials: the unit that is stored, published and ranked."""

    session: Session
    trials: tuple[Trial, ...]
