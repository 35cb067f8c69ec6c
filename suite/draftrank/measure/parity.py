"""Parity: whether a draft does in another engine what it does in this one.

Both engines continue the same token ids greedily, one prompt at a time, with the draft and without. Outputs should be
equal, and acceptance lengths too. A record holds what both made of every prompt; the report is computed from it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from draftrank.catalog.backend import RecordedBackend
from draftrank.catalog.base import Identifier, Sha256
from draftrank.measure.evidence import Count, Divergence, NotNegative, Record, Seconds
from draftrank.measure.fidelity.divergence import first_difference
from draftrank.measure.records import DraftBuild, Measurement, PromptedTurn
from draftrank.measure.statistics.estimates import Estimate, compare_rates, ratio

EngineName = Literal["vllm", "llama.cpp", "transformers"]
Verdict = Literal["holds", "fails", "undecided"]
TOLERANCE = 0.02
"""How far the ratio of acceptance lengths may lie from 1."""


class Output(Record):
    """What one engine made of a prompt, with the draft or without."""

    token_ids: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    """Emitted tokens, the first from the prefill; None: those of this engine without the draft."""
    steps: Count
    """Verification forwards of the target after the prefill; without a draft, forwards of one token."""
    proposed: Count = 0
    """Proposed tokens, as the engine counts them."""
    decode_s: Seconds
    """Seconds from the first token's arrival to the last token's."""
    disagreement: str | None = None
    """How the engine's own figures contradict its output; None where they agree."""


class ParityTurn(PromptedTurn):
    """One prompt turn in both engines."""

    plain_here: Output
    """This engine without the draft; its `token_ids` are stated."""
    draft_here: Output
    """This engine with the draft."""
    plain_there: Output
    """The other engine without the draft."""
    draft_there: Output
    """The other engine with the draft."""
    plain_divergence: Divergence | None = None
    """Where the other engine without the draft left this engine's output; None where it did not."""
    draft_divergence: Divergence | None = None
    """Where the other engine with the draft left its own output without; None where it did not."""

    @model_validator(mode="after")
    def _adds_up(self) -> ParityTurn:
        if self.plain_here.token_ids is None:
            raise ValueError("plain_here states no token_ids")
        for name in ("plain_here", "draft_here", "plain_there", "draft_there"):
            output: Output = getattr(self, name)
            after_first = len(self.tokens(output)) - 1
            if output.steps > after_first or (name.startswith("plain") and output.steps != after_first):
                raise ValueError(f"{name} has {output.steps} steps for {after_first} tokens after the first")
        for name, one, other in (
            ("plain_divergence", self.plain_there, self.plain_here),
            ("draft_divergence", self.draft_there, self.plain_there),
        ):
            told: Divergence | None = getattr(self, name)
            if first_difference(self.tokens(one), self.tokens(other)) != (told.index if told else None):
                raise ValueError(f"{name} does not fit the token_ids")
        return self

    def tokens(self, output: Output) -> tuple[int, ...]:
        """Token ids of one of its outputs."""
        found = output.token_ids if output.token_ids is not None else self.plain_here.token_ids
        assert found is not None
        return found

    def emitted(self, output: Output) -> int:
        """Tokens of one of its outputs after the prefill's."""
        return len(self.tokens(output)) - 1


class Parity(Measurement):
    """One draft in another engine, beside this one."""

    created_at: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z$")]
    """UTC time, ISO 8601."""
    draft: Identifier
    """Id of the draft."""
    build: DraftBuild
    """What was built from its recipe."""
    num_speculative_tokens: Annotated[int, Field(ge=1)]
    """k."""
    engine: EngineName
    """The other engine."""
    engine_version: str
    """Its version."""
    speculation: dict[str, str | int]
    """What it was told of the draft, without paths."""
    form: str
    """What the draft was exported as."""
    export_sha256: Sha256 | None
    """Hash over the exported weights; None for a draft without weights."""
    differs: tuple[str, ...]
    """What is known to differ between the engines for this draft."""
    backend: RecordedBackend
    """What ran the forwards of this engine."""
    rounding: NotNegative
    """Largest difference between the engines' logit gaps of the target's two best tokens: within it an output may differ."""
    rounding_positions: Count
    """Tokens over which that was measured."""
    turns: Annotated[tuple[ParityTurn, ...], Field(min_length=1)]
    """Every prompt turn."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Outputs of one kind against those they should equal."""

    compared: int
    """Outputs compared."""
    ties: int
    """Outputs that differ by rounding alone."""
    breaks: int
    """Outputs that differ for no excuse."""

    def sentence(self) -> str:
        """In words: `identical`, `2 of 40 differ by rounding (numerical ties)`, `2 of 40 differ, 1 beyond rounding`."""
        differing = self.ties + self.breaks
        if not differing:
            return "identical"
        how = f", {self.breaks} beyond rounding" if self.breaks else " by rounding (numerical ties)"
        return f"{differing} of {self.compared} differ{how}"


@dataclass(frozen=True, slots=True)
class LengthRatio:
    """Acceptance lengths of both engines."""

    here: float | None
    """In this engine; None without steps."""
    there: float | None
    """In the other."""
    ratio: Estimate | None
    """`there` ÷ `here`; over tasks, the geometric mean of theirs. None without steps."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """Decode speed in tokens per second, over all prompts; None where nothing was decoded."""

    plain_here: float | None
    draft_here: float | None
    plain_there: float | None
    draft_there: float | None


@dataclass(frozen=True, slots=True)
class ParityReport:
    """What a record says."""

    overall: LengthRatio
    tasks: Mapping[str, LengthRatio]
    """By task id."""
    speeds: Speeds
    target: Agreement
    """The other engine without the draft against this one: whether both run the same target."""
    outputs: Agreement
    """The other engine with the draft against itself without: whether the draft leaves the output alone."""
    disagreements: tuple[str, ...]
    """Prompts whose counts contradict the output, each with how."""
    verdict: Verdict
    """`holds`: outputs equal but for ties, counts agree, and the whole interval of the ratio lies within `TOLERANCE` of 1;
    `fails`: outputs or counts differ, or the whole interval lies outside; `undecided`: the interval reaches both sides,
    or too few prompts give one."""
    reasons: tuple[str, ...]
    """Why it does not hold."""


def report_of(parity: Parity) -> ParityReport:
    """Computes what is shown."""
    rows: dict[str, dict[str, list[float]]] = defaultdict(dict)
    for turn in parity.turns:
        row = rows[turn.task].setdefault(turn.prompt, [0.0] * 4)
        both = (turn.draft_here, turn.draft_there)
        values = [float(value) for output in both for value in (output.steps, turn.emitted(output))]
        rows[turn.task][turn.prompt] = [before + value for before, value in zip(row, values, strict=True)]
    overall, ratios = compare_rates({task: list(prompts.values()) for task, prompts in rows.items()})
    tasks = {
        task: _lengths(list(prompts.values()), ratios.get(task)) for task, prompts in sorted(rows.items())
    }
    lengths = _lengths([row for prompts in rows.values() for row in prompts.values()], overall)
    target, outputs = _agreement(parity, "plain_divergence"), _agreement(parity, "draft_divergence")
    disagreements = tuple(_disagreements(parity))
    broken = tuple(_broken(parity, target, outputs, disagreements))
    apart = _apart(lengths)
    verdict: Verdict = "fails" if broken or apart == "fails" else apart
    told = f"the acceptance length there {'lies' if apart == 'fails' else 'may lie'} more than {100 * TOLERANCE:g} % from that here"
    reasons = broken if apart == "holds" else (*broken, told)
    return ParityReport(lengths, tasks, _speeds(parity), target, outputs, disagreements, verdict, reasons)


def _lengths(rows: list[list[float]], found: Estimate | None) -> LengthRatio:
    steps_here, here, steps_there, there = (sum(column) for column in zip(*rows, strict=True))
    return LengthRatio(ratio(here, steps_here), ratio(there, steps_there), found)


def _apart(lengths: LengthRatio) -> Verdict:
    interval = None if lengths.ratio is None else lengths.ratio.interval
    if interval is None:
        return "undecided"
    if interval.low >= 1 - TOLERANCE and interval.high <= 1 + TOLERANCE:
        return "holds"
    return "fails" if interval.low > 1 + TOLERANCE or interval.high < 1 - TOLERANCE else "undecided"


def is_tie(divergence: Divergence, rounding: float) -> bool:
    """Whether rounding explains it: both tokens lie within it of the target's best one."""
    return all(gap is not None and gap <= rounding for gap in (divergence.gap, divergence.baseline_gap))


def _agreement(parity: Parity, field: Literal["plain_divergence", "draft_divergence"]) -> Agreement:
    found: list[Divergence] = [one for turn in parity.turns if (one := getattr(turn, field)) is not None]
    ties = sum(is_tie(one, parity.rounding) for one in found)
    return Agreement(len(parity.turns), ties, len(found) - ties)


def _disagreements(parity: Parity) -> Iterator[str]:
    for turn in parity.turns:
        for output in (turn.plain_there, turn.draft_there):
            if output.disagreement is not None:
                yield f"{turn.task}/{turn.prompt}: {output.disagreement}"


def _broken(
    parity: Parity, target: Agreement, outputs: Agreement, disagreements: tuple[str, ...]
) -> Iterator[str]:
    if target.breaks:
        yield f"{target.breaks} outputs of {parity.engine} without the draft differ from those here"
    if outputs.breaks:
        yield f"{outputs.breaks} outputs of {parity.engine} differ with the draft from those without"
    if disagreements:
        yield f"the figures of {len(disagreements)} outputs contradict the outputs"


def _speeds(parity: Parity) -> Speeds:
    found = []
    for name in Speeds.__slots__:
        outputs: list[tuple[int, float]] = [
            (turn.emitted(getattr(turn, name)), getattr(turn, name).decode_s) for turn in parity.turns
        ]
        found.append(ratio(sum(tokens for tokens, _ in outputs), sum(seconds for _, seconds in outputs)))
    return Speeds(*found)
