"""One serving session's rounds, boiled down to what is shown and judged. Nothing here is stored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from draftrank.measure.fidelity.serving import ServedFidelity, compare_served
from draftrank.measure.serving_records import Round, ServingArm, ServingResult, ServingSession
from draftrank.measure.statistics.estimates import Estimate
from draftrank.measure.statistics.serving import (
    Block,
    Latency,
    ServedAcceptance,
    acceptance_of,
    compare_rounds,
    energy_per_token,
    latency_of,
    mean_known,
    standing_rounds,
    throughput_of,
    times_of,
)

Blocks = Mapping[Block, Mapping[str, Round]]


@dataclass(frozen=True, slots=True)
class ServedCell:
    """One arm at one concurrency."""

    concurrency: int
    rounds: tuple[Round, ...]
    """Those that count, by index."""
    pairs: tuple[tuple[Round, Round], ...]
    """The baseline's round and its own of each block that has both; of the baseline none."""
    throughput: float | None
    """Output tokens of complete requests per wall second."""
    speedup: Estimate | None
    """Over the baseline in the same blocks; None for the baseline itself."""
    tpot: Latency | None
    ttft: Latency | None
    acceptance: ServedAcceptance | None
    """None where the engine gives no figures."""
    memory_bytes: int | None
    """The most that its server held at the end of a round."""
    energy_per_token_j: float | None
    client_cpu: float | None
    """Processors that the client kept busy in the worst round."""
    server_cpu: float | None
    """Processors that the server kept busy, on average."""
    fidelity: ServedFidelity

    @property
    def per_user(self) -> float | None:
        """Output tokens per second of one request: 1 ÷ the median TPOT."""
        return 1 / self.tpot.median.value if self.tpot and self.tpot.median.value else None


@dataclass(frozen=True, slots=True)
class ServedArm:
    """One arm of a session."""

    arm: ServingArm
    cells: Mapping[int, ServedCell]
    """By concurrency, ascending: all of the session's, without rounds where it has none."""


@dataclass(frozen=True, slots=True)
class ServingSummary:
    """What a session comes to."""

    session: ServingSession
    arms: tuple[ServedArm, ...]
    """In the session's order."""
    blocks: Blocks
    """The rounds that count, by concurrency and index, then by arm."""
    unplanned: tuple[str, ...]
    """Rounds that the session did not plan, in words."""

    @property
    def baseline(self) -> ServedArm | None:
        """The plain server."""
        return next((found for found in self.arms if found.arm.kind == "baseline"), None)

    def noise(self, concurrency: int) -> Estimate | None:
        """A/A at a concurrency: the plain server's twin over it; None where there are no such rounds."""
        twin = next((found for found in self.arms if found.arm.kind == "control"), None)
        cell = twin.cells.get(concurrency) if twin else None
        return cell.speedup if cell else None


def summarise_serving(result: ServingResult) -> ServingSummary:
    """Computes every figure of a session."""
    session = result.session
    known = {arm.id for arm in session.arms}
    planned, unplanned = [], []
    for one in result.rounds:
        fits = one.arm in known and one.concurrency in session.concurrencies and one.rate == session.rate
        if any(request.turn >= len(session.turns) for request in one.requests):
            unplanned.append(f"a prompt turn in round {one.index} of {one.arm}")
        elif fits:
            planned.append(one)
        else:
            rate = f", rate {one.rate:g}" if one.rate is not None else ""
            unplanned.append(f"a round of {one.arm} at {one.concurrency}{rate}")
    blocks = standing_rounds(planned)
    of_arm: dict[str, dict[int, list[Round]]] = defaultdict(lambda: defaultdict(list))
    for (concurrency, _), block in blocks.items():
        for name, one in block.items():
            of_arm[name][concurrency].append(one)
    baseline = next((arm.id for arm in session.arms if arm.kind == "baseline"), "")
    plain: dict[int, list[Round]] = defaultdict(list)
    for arm in session.arms:
        if arm.kind != "draft":
            for concurrency, rounds in of_arm[arm.id].items():
                plain[concurrency] += rounds
    arms = tuple(
        ServedArm(
            arm,
            {
                concurrency: _cell(
                    arm,
                    concurrency,
                    of_arm[arm.id][concurrency],
                    paired_rounds(blocks, baseline, arm.id, concurrency) if arm.kind != "baseline" else [],
                    plain,
                    session,
                )
                for concurrency in session.concurrencies
            },
        )
        for arm in session.arms
    )
    return ServingSummary(session, arms, blocks, tuple(unplanned))


def paired_rounds(blocks: Blocks, first: str, second: str, concurrency: int) -> list[tuple[Round, Round]]:
    """Rounds of two arms in the same blocks of a concurrency."""
    return [
        (block[first], block[second])
        for (at, _), block in blocks.items()
        if at == concurrency and first in block and second in block
    ]


def _cell(
    arm: ServingArm,
    concurrency: int,
    rounds: Sequence[Round],
    pairs: Sequence[tuple[Round, Round]],
    plain: Mapping[int, Sequence[Round]],
    session: ServingSession,
) -> ServedCell:
    return ServedCell(
        concurrency,
        tuple(rounds),
        tuple(pairs),
        throughput_of(rounds),
        compare_rounds(pairs),
        latency_of(times_of(rounds, "tpot_s")),
        latency_of(times_of(rounds, "ttft_s")),
        acceptance_of(rounds) if arm.kind == "draft" else None,
        max((one.memory_bytes for one in rounds if one.memory_bytes is not None), default=None),
        energy_per_token(rounds),
        max((one.client_cpu for one in rounds if one.client_cpu is not None), default=None),
        mean_known(one.server_cpu for one in rounds),
        compare_served(rounds, plain, concurrency, session),
    )
