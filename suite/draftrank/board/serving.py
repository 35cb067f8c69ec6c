"""Serving boards: drafts in one server on one machine, with a column for each concurrency.

Every concurrency is ranked by itself: a draft that leads with one request in flight may lose with sixteen. Of a draft that
was measured with several k, each column shows the k with the highest speedup there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TypeVar

from pydantic import with_config

from draftrank.board.formats import UNKNOWN
from draftrank.board.references import DOCUMENTED
from draftrank.board.reproduce import serve_command
from draftrank.board.rows import measured_at
from draftrank.catalog.base import sha256_of_json
from draftrank.catalog.programs import NAMES
from draftrank.measure.records import DraftBuild
from draftrank.measure.serving_records import ServingSession
from draftrank.measure.statistics.estimates import Estimate, Interval
from draftrank.measure.statistics.serving import SwitchOff
from draftrank.version import __version__, minor_of

_ENGINES: Mapping[str, str] = {str(engine): name for engine, name in NAMES.items()}
Ends = tuple[float, float]
Item = TypeVar("Item")


@with_config(DOCUMENTED)
@dataclass(frozen=True, slots=True)
class ServingKey:
    """What two serving sessions must share for their drafts to be compared."""

    target: str
    target_weights_sha256: str
    server: str
    """Id of the server's declaration."""
    server_sha256: str
    engine: str
    engine_version: str
    """Major and minor version of the engine."""
    machine_class: str
    dtype: str
    device: str
    suite: str
    suite_sha256: str
    turns_sha256: str
    """Hash of the prompt turns and their length limits."""
    rate: float | None
    """Requests per second of an open loop; None: a closed loop."""
    draftrank_version: str
    """Major and minor version: patches do not change how things are measured."""

    @property
    def engine_and_dtype(self) -> str:
        """The engine with its version and dtype, e.g. `vLLM 0.32 bf16`."""
        return f"{_ENGINES.get(self.engine, self.engine)} {self.engine_version} {self.dtype}"

    @property
    def title(self) -> str:
        """The board in a few words."""
        load = f", {self.rate:g} requests/s" if self.rate is not None else ""
        return f"{self.target}: {self.engine_and_dtype} ({self.server}), {self.suite}, {self.machine_class}{load}"

    @property
    def archived(self) -> bool:
        """Whether another minor version than the running one measured it."""
        return self.draftrank_version != minor_of(__version__)

    @property
    def id(self) -> str:
        """12 hex digits, the same wherever the board is built."""
        return sha256_of_json(asdict(self))[:12]


@with_config(DOCUMENTED)
@dataclass(frozen=True, slots=True)
class ServedFigures:
    """One arm at one concurrency. Figures are None where the session cannot give them."""

    arm: str
    """Id of the arm."""
    k: int
    """Tokens proposed per step at most; 0 for the plain server."""
    concurrency: int
    """Requests in flight at once."""
    rank: tuple[int, int] | None
    """Best and worst rank at this concurrency that cannot be excluded; None when not ranked, and for another k than the
    one that is shown."""
    ranked: bool
    """Whether it passed every gate here."""
    gates: tuple[str, ...]
    """Ids of the gates it did not pass here."""
    reason: str | None
    """Why it is not ranked here, and what to do."""
    speedup: float | None
    """Throughput over the plain server's; None for the plain server."""
    ci: Ends | None
    """95 % interval of the speedup."""
    throughput: float | None
    """Output tokens per wall second, all requests together."""
    per_user: float | None
    """Output tokens per second of one request: 1 ÷ the median TPOT."""
    tpot_s: float | None
    """Median time per output token of a request after its first, in seconds."""
    tpot_ci: Ends | None
    tpot_p99_s: float | None
    """99th percentile."""
    ttft_s: float | None
    """Median time to the first token, in seconds."""
    ttft_ci: Ends | None
    ttft_p99_s: float | None
    """99th percentile."""
    acceptance_length: float | None
    acceptance_rate: float | None
    memory_bytes: int | None
    """The most that the server held at the end of a round."""
    energy_per_token_j: float | None
    """Joules per output token."""
    client_cpu: float | None
    """Processors that the client kept busy in the worst round."""
    server_cpu: float | None
    """Processors that the server kept busy, on average."""
    rounds: int
    """Rounds that count."""
    output: str
    """Whether its outputs are the plain server's, in words."""

    @property
    def interval(self) -> Interval | None:
        """`ci` as an interval."""
        return Interval(*self.ci) if self.ci else None

    @property
    def answer(self) -> str:
        """Whether it is surely faster than the plain server: `faster`, `slower` or `can't tell`; `not ranked` where a gate
        was failed."""
        if not self.ranked:
            return "not ranked"
        if self.ci is None or self.ci[0] <= 1.0 <= self.ci[1]:
            return "can't tell"
        return "faster" if self.ci[0] > 1.0 else "slower"


@with_config(DOCUMENTED)
@dataclass(frozen=True, slots=True)
class ServedRow:
    """One draft on a serving board."""

    draft: str
    """Id of the draft."""
    title: str
    """Its name for people; the id where the recipe has none."""
    proposer: str
    """What proposes its tokens."""
    method: str
    """What the server was told to run: `ngram`, `suffix`, `draft_model`, `eagle3`, or a method by the engine's own name."""
    techniques: tuple[str, ...]
    """How it was made."""
    trained: bool | None
    """Whether its recipe trains it; None when the build failed."""
    best: Mapping[int, ServedFigures]
    """By concurrency, the figures of the k that is shown: the ranked one with the highest speedup."""
    arms: tuple[tuple[ServedFigures, ...], ...]
    """Of each k, ascending, the figures by concurrency."""
    best_k: Mapping[int, tuple[int, ...]]
    """By concurrency, the best k, or those that cannot be told apart: no other ranked k is surely faster. Concurrencies with
    fewer than two ranked k are missing."""
    switch_off: SwitchOff
    """Of the figures in `best` that are ranked."""
    differs: tuple[str, ...]
    """What is known to differ from the draft as its recipe says, and whether its acceptance comes from the server's counters."""
    recipe_sha256: str | None
    weights_sha256: str | None
    session: str
    """Id of the session that measured it."""
    measured_at: str
    """UTC time, ISO 8601."""
    build: DraftBuild | None
    """The draft as recorded; None when the build failed."""
    earlier_recipe: bool = False
    """Whether a newer result of this draft, on any board, has another recipe."""

    @property
    def k(self) -> int:
        """Tokens proposed per step at most, with the fewest requests in flight."""
        return next(iter(self.best.values())).k

    @property
    def ranked(self) -> bool:
        """Whether it is ranked at some concurrency."""
        return any(found.ranked for found in self.best.values())

    def best_k_words(self, concurrency: int) -> str:
        """The best k at a concurrency, e.g. `4`, or `2 or 4` where neither is surely faster; a dash where it is unknown."""
        return " or ".join(map(str, self.best_k.get(concurrency, ()))) or UNKNOWN

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is not ranked, each with the concurrencies it holds for unless it holds for all."""
        where: dict[str, list[int]] = defaultdict(list)
        for concurrency, found in self.best.items():
            if found.reason is not None:
                where[found.reason].append(concurrency)
        return tuple(
            reason if len(at) == len(self.best) else f"at {', '.join(map(str, at))}: {reason}"
            for reason, at in where.items()
        )


@dataclass(frozen=True, slots=True)
class ServingBoardSession:
    """A session that gave rows to a board."""

    record: ServingSession
    plain: Mapping[int, ServedFigures]
    """The plain server by concurrency."""
    noise: Mapping[int, Estimate | None]
    """A/A by concurrency."""

    @property
    def measured_at(self) -> str:
        """When it ended, or began if it has not ended."""
        return measured_at(self.record)

    @property
    def reproduce(self) -> str:
        """The command that measures it again."""
        return serve_command(self.record)


@dataclass(frozen=True, slots=True)
class ServingBoard:
    """Drafts in one server, those that gain most over all concurrencies first."""

    key: ServingKey
    concurrencies: tuple[int, ...]
    """Of all sessions, ascending."""
    rows: tuple[ServedRow, ...]
    sessions: tuple[ServingBoardSession, ...]
    """Those the rows come from, newest first; never empty."""

    @property
    def newest(self) -> ServingBoardSession:
        """The session whose plain server stands in the board's head."""
        return self.sessions[0]

    @property
    def several_k(self) -> tuple[ServedRow, ...]:
        """Rows that were measured with more than one k."""
        return tuple(row for row in self.rows if len(row.arms) > 1)

    def leader(self, concurrency: int) -> ServedRow | None:
        """The draft to use with so many requests in flight: the fastest of those that no other one is surely ahead of; None
        where none is surely faster than the plain server."""
        found = [
            row
            for row in self.rows
            if concurrency in row.best
            and row.best[concurrency].answer == "faster"
            and (row.best[concurrency].rank or (2, 2))[0] == 1
        ]
        return max(found, key=lambda row: row.best[concurrency].speedup or 0.0, default=None)

    def ranks_at(self, concurrency: int) -> bool:
        """Whether any draft is ranked with so many requests in flight."""
        return any(concurrency in row.best and row.best[concurrency].ranked for row in self.rows)

    @property
    def frontier(self) -> list[ServedFigures]:
        """Ranked figures of drafts that no other ones beat in tokens per second per user and in total."""
        found = [cell for row in self.rows for cell in row.best.values() if cell.ranked]
        return _frontier(found)

    @property
    def plain_frontier(self) -> list[ServedFigures]:
        """The same of the plain server."""
        return _frontier(self.newest.plain.values())


def _frontier(found: Iterable[ServedFigures]) -> list[ServedFigures]:
    placed = [
        (cell, -cell.per_user, cell.throughput)
        for cell in found
        if cell.per_user is not None and cell.throughput is not None
    ]
    return frontier(placed)


def frontier(items: Iterable[tuple[Item, float, float]]) -> list[Item]:
    """The Pareto frontier of (item, cost, gain): lowest costs and highest gains, by rising cost.

    An item is on it unless another one costs no more and gains at least as much, and differs in either.
    """
    best: list[Item] = []
    reached, at = float("-inf"), float("-inf")
    for item, cost, gain in sorted(items, key=lambda entry: (entry[1], -entry[2])):
        if gain > reached or (gain == reached and cost == at):
            best.append(item)
            reached, at = gain, cost
    return best
