"""What a serving session leaves behind: raw requests, round by round.

A serving session measures servers from outside: one arm is one server process, alike but for its speculative
configuration. A round sends the same prompts to one arm at one concurrency. Rounds with the same index are one block: all
arms at that concurrency, in an order drawn for the block. The unit of the statistics is the round, paired with the baseline's
of its block. Every figure is computed from these records.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from draftrank.catalog.base import Identifier, Sha256
from draftrank.measure.evidence import Conditions, Count, NotNegative, Record, Seconds
from draftrank.measure.records import DraftBuild, Machine, PromptedTurn, SessionHeader

ServingArmKind = Literal["baseline", "control", "draft"]
RequestEnd = Literal["stop", "length", "failed"]
Microseconds = Annotated[int, Field(ge=0)]


class PromptTurn(PromptedTurn):
    """One prompt turn of the session, and what the plain server made of it alone, one request in flight."""

    prompt_tokens: Annotated[int, Field(ge=1)]
    """Tokens of the prompt, rendered once and sent as token ids to every arm."""
    max_new_tokens: Annotated[int, Field(ge=1)]
    """Length limit."""
    token_ids: Annotated[tuple[Count, ...], Field(min_length=1)]
    """The plain server's greedy output at concurrency 1, before the rounds."""


class ServedDivergence(Record):
    """The first place at which an output left the plain server's output at concurrency 1.

    The plain server reads prompt and common tokens and tells log-probabilities there; gaps are differences to its best token's.
    """

    index: Count
    """Index of the first emitted token that differs."""
    gap: NotNegative | None
    """Gap of the token that was emitted; None where the output ended there, or the server did not name the token."""
    plain_gap: NotNegative | None
    """Gap of the token of the plain server's output at concurrency 1; None as `gap`."""


class ServedRequest(Record):
    """One request of a round."""

    turn: Count
    """Index into the session's `turns`."""
    sent_us: Microseconds
    """Microseconds from the round's start to sending it."""
    arrivals_us: tuple[Microseconds, ...] = ()
    """Of each event with tokens: microseconds since the event before; the first since sending: its value is the TTFT."""
    arrival_tokens: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Tokens of each of these events."""
    token_ids: tuple[Count, ...] | None = None
    """Emitted tokens; None: those of the session's turn."""
    end: RequestEnd
    """`stop`: a stop token ended it; `length`: the limit did; `failed`: see `failure`."""
    failure: str | None = None
    """Why it failed: refused, broken off, hung, without tokens."""
    accepted: Count | None = None
    """Accepted and emitted tokens by the engine's figures of this request; None where it gives none."""
    proposed: Count | None = None
    """Proposed tokens by the engine's figures of this request; None where it gives none."""
    disagreement: str | None = None
    """How the engine's figures of this request contradict its output; None where they agree."""
    divergence: ServedDivergence | None = None
    """Where a greedy output left the session's turn; None where it did not."""

    @model_validator(mode="after")
    def _adds_up(self) -> ServedRequest:
        if len(self.arrivals_us) != len(self.arrival_tokens):
            raise ValueError("arrivals_us and arrival_tokens have different lengths")
        if (self.end == "failed") != (self.failure is not None):
            raise ValueError("a request has a failure exactly if it failed")
        if self.end != "failed" and not self.arrivals_us:
            raise ValueError("a complete request has tokens")
        if (
            self.token_ids is not None
            and self.end != "failed"
            and len(self.token_ids) != sum(self.arrival_tokens)
        ):
            raise ValueError("token_ids and arrival_tokens count different tokens")
        return self

    @property
    def tokens(self) -> int:
        """Emitted tokens."""
        return sum(self.arrival_tokens)

    @property
    def ttft_s(self) -> float | None:
        """Seconds from sending to the first token; None without tokens."""
        return self.arrivals_us[0] / 1e6 if self.arrivals_us else None

    @property
    def done_us(self) -> int:
        """Microseconds from the round's start to its last token."""
        return self.sent_us + sum(self.arrivals_us)

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds per token after the first event's; None where one event brought all."""
        rest = sum(self.arrival_tokens[1:])
        return sum(self.arrivals_us[1:]) / 1e6 / rest if rest else None


class Counters(Record):
    """The server's own counters, differenced around a round."""

    drafts: Count
    """Steps that proposed something."""
    proposed: Count
    """Proposed tokens."""
    accepted: Count
    """Accepted tokens, those behind an output's end included where the engine counts them."""


class Round(Record):
    """All prompts sent to one arm at one concurrency."""

    arm: str
    """Id of the arm."""
    concurrency: Annotated[int, Field(ge=1)]
    """Requests in flight at once in a closed loop; with `rate`, the most that were allowed."""
    rate: Annotated[float, Field(gt=0)] | None = None
    """Requests per second of an open loop with Poisson arrivals; None: a closed loop."""
    index: Count
    """Index of its block among those of its concurrency and rate, from 0."""
    position: Count
    """Place among the rounds of its block."""
    attempt: Count = 0
    """Above 0 when the block was measured again because the machine was disturbed."""
    process: Count
    """Number of the process that measured it; above 0 after an interrupted session went on."""
    started_at: str
    """UTC time, ISO 8601."""
    wall_s: Seconds
    """Seconds from sending the first request to the last request's end."""
    requests: tuple[ServedRequest, ...]
    """In the order in which they were sent: every turn equally often, more than once where concurrency needs more."""
    counters: Counters | None = None
    """None where the server has none."""
    conditions: Conditions | None = None
    """What else the machine did; `others_cpus` counts neither the client nor this arm's server, and does count idle servers."""
    client_cpu: NotNegative | None = None
    """Processors that the client kept busy, on average."""
    server_cpu: NotNegative | None = None
    """Processors that the server's processes kept busy, on average; None for a server on another machine."""
    server_started: Count = 0
    """How often the arm's server had been started before this round ended; differs between rounds of a server that restarted."""
    memory_bytes: Count | None = None
    """Memory of the server's processes at the end, shared pages counted once where the system tells them apart."""
    energy_j: NotNegative | None = None
    """Joules that the processor or GPU took, where the machine tells."""

    @property
    def tokens(self) -> int:
        """Emitted tokens of complete requests."""
        return sum(request.tokens for request in self.requests if request.end != "failed")

    @property
    def key(self) -> tuple[str, int, float | None, int, int]:
        """What makes a round unique in its session."""
        return (self.arm, self.concurrency, self.rate, self.index, self.attempt)


class ServingArm(Record):
    """One server: the plain one, its twin, or one with a draft."""

    id: str
    """Unique in the session: a draft's id, `baseline` or `baseline-control`; with several k, the draft's id, `-k` and k."""
    kind: ServingArmKind
    """`baseline`, its A/A twin `control`, or a `draft`."""
    draft_id: Identifier | None = None
    """The draft; None for plain servers."""
    draft: DraftBuild | None = None
    """What was built; None for plain servers and builds that failed."""
    num_speculative_tokens: Count = 0
    """k; 0 for plain servers."""
    speculation: dict[str, Any] = Field(default_factory=dict)
    """What the engine was told of the draft, without paths; empty for plain servers."""
    form: str | None = None
    """What the draft was exported as; None without weights."""
    export_sha256: Sha256 | None = None
    """Hash over the exported weights; None without weights."""
    differs: tuple[str, ...] = ()
    """What is known to differ from the draft as its recipe says, e.g. chains instead of trees."""
    flags: tuple[str, ...] = ()
    """How the server was started, without paths, ports and tokens."""
    start_s: Seconds | None = None
    """Seconds from its start until it was ready; None for one that ran already."""
    failure: str | None = None
    """Why the arm has no or not all rounds; None when it ran."""
    log_tail: str | None = None
    """End of its log, where it failed."""


class ServingSession(SessionHeader):
    """One target in one engine on one machine; holds servers that may be compared."""

    machine: Machine
    """Where this client ran, and the server unless it was attached from elsewhere; `threads` are the server's."""
    server: Identifier
    """Id of the server's declaration."""
    server_declared: dict[str, Any]
    """The declaration (canonical form); never a token."""
    server_sha256: Sha256
    """Identity of the declaration."""
    engine: str
    """Name of the engine, e.g. `vllm`."""
    engine_version: str
    """Its version, as it reports it."""
    turns: tuple[PromptTurn, ...]
    """Every prompt turn that rounds send."""
    concurrencies: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
    """Requests in flight at once, ascending."""
    rate: Annotated[float, Field(gt=0)] | None = None
    """Of an open loop; None: closed."""
    rounds: Annotated[int, Field(ge=1)]
    """Blocks of every concurrency."""
    seed: Count
    """Seed of the prompts' order and of arrivals."""
    arms: tuple[ServingArm, ...]
    """The baseline first, then its twin, then drafts."""


class ServingResult(Record):
    """A serving session with its rounds: the unit that is stored, published and ranked."""

    session: ServingSession
    rounds: tuple[Round, ...]
