"""From serving sessions to their boards: which result stands for a draft, and who ranks where at each concurrency."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from draftrank.board.proposers import proposer_of, technique_in_words
from draftrank.board.rows import measured_at, words_of
from draftrank.board.serving import (
    ServedFigures,
    ServedRow,
    ServingBoard,
    ServingBoardSession,
    ServingKey,
)
from draftrank.catalog.base import sha256_of_json
from draftrank.measure.gates.gate import Finding
from draftrank.measure.gates.serving import judge_served
from draftrank.measure.serving_records import ServingArm, ServingResult, ServingSession
from draftrank.measure.statistics.estimates import ends_of
from draftrank.measure.statistics.log_ratio import LogRatio, difference
from draftrank.measure.statistics.ranking_evidence import Standing, stand_by
from draftrank.measure.statistics.serving import compare_rounds, switch_off
from draftrank.measure.summaries.serving import (
    ServedArm,
    ServedCell,
    ServingSummary,
    paired_rounds,
    summarise_serving,
)
from draftrank.version import minor_of

COUNTED = (
    "Its acceptance comes from the server's counters, which also count accepted tokens behind the end of an "
    "output: the acceptance length is at most the one shown."
)
"""What a reader should know where the engine tells nothing of single requests."""


def build_serving_boards(results: Iterable[ServingResult]) -> tuple[ServingBoard, ...]:
    """All serving boards, by title, of one title the newest first; the order of `results` does not matter.

    Of a session that stands twice (before and after it was continued) the fuller one counts; of a draft's newest recipe the
    newest session in which it is ranked somewhere, else the newest.
    """
    fullest: dict[str, ServingResult] = {}
    for result in sorted(results, key=lambda one: len(one.rounds)):
        fullest[result.session.id] = result
    grouped: dict[ServingKey, list[ServingSummary]] = defaultdict(list)
    for result in fullest.values():
        grouped[serving_key_of(result.session)].append(summarise_serving(result))
    boards = [_board(key, summaries) for key, summaries in grouped.items()]
    boards.sort(key=lambda board: (board.newest.measured_at, board.key.id), reverse=True)
    return tuple(sorted(boards, key=lambda board: (board.key.archived, board.key.title)))


def _board(key: ServingKey, summaries: Sequence[ServingSummary]) -> ServingBoard:
    newest_first = sorted(
        summaries, key=lambda summary: (measured_at(summary.session), summary.session.id), reverse=True
    )
    chosen: dict[str, tuple[ServedRow, ServingSummary]] = {}
    for summary in newest_first:
        for row in _rows(summary):
            known = chosen.get(row.draft)
            if known is None or (row.ranked and not known[0].ranked and _same_recipe(row, known[0])):
                chosen[row.draft] = row, summary
    used = {row.session for row, _ in chosen.values()}
    shown = [summary for summary in newest_first if summary.session.id in used] or newest_first[:1]
    concurrencies = tuple(sorted({at for summary in shown for at in summary.session.concurrencies}))
    rows = _ranked(chosen, concurrencies)
    return ServingBoard(key, concurrencies, tuple(sorted(rows, key=_order)), tuple(map(_session, shown)))


def _same_recipe(row: ServedRow, newer: ServedRow) -> bool:
    """Whether an older row is of the recipe of a newer one; a build that failed names none."""
    return newer.recipe_sha256 in (None, row.recipe_sha256)


def _order(row: ServedRow) -> tuple[bool, float, str]:
    """Those with the highest product of ranked speedups first; what is not ranked counts as 1."""
    gains = [math.log(found.speedup) for found in row.best.values() if found.ranked and found.speedup]
    return not row.ranked, -math.fsum(gains), row.draft


def _rows(summary: ServingSummary) -> list[ServedRow]:
    arms: dict[str, list[ServedArm]] = defaultdict(list)
    for arm in summary.arms:
        if arm.arm.kind == "draft":
            arms[arm.arm.draft_id or arm.arm.id].append(arm)
    return [
        _row(summary, draft, sorted(own, key=lambda arm: arm.arm.num_speculative_tokens))
        for draft, own in arms.items()
    ]


def _row(summary: ServingSummary, draft: str, arms: Sequence[ServedArm]) -> ServedRow:
    session = summary.session
    figures = tuple(
        tuple(_figures(summary, arm, concurrency) for concurrency in session.concurrencies) for arm in arms
    )
    best = {of_one[0].concurrency: max(of_one, key=_worth) for of_one in zip(*figures, strict=True)}
    build = next((arm.arm.draft for arm in arms if arm.arm.draft is not None), None)
    method = next((str(found) for arm in arms if (found := arm.arm.speculation.get("method"))), "unknown")
    return ServedRow(
        draft=draft,
        title=words_of(session.draftrank_version, build, "title") or draft,
        proposer=proposer_of(build.recipe, build.techniques, served=True) if build else method,
        method=method,
        techniques=tuple(map(technique_in_words, build.techniques)) if build else (),
        trained=build.trained if build else None,
        best=best,
        arms=figures,
        best_k=_best_k(summary, figures),
        switch_off=switch_off({at: found.interval for at, found in best.items() if found.ranked}),
        differs=tuple(dict.fromkeys(words for arm in arms for words in (*arm.arm.differs, *_counted(arm)))),
        recipe_sha256=build.recipe_sha256 if build else None,
        weights_sha256=build.weights_sha256 if build else None,
        session=session.id,
        measured_at=measured_at(session),
        build=build,
    )


def _counted(arm: ServedArm) -> tuple[str, ...]:
    by_counters = any(cell.acceptance and not cell.acceptance.by_request for cell in arm.cells.values())
    return (COUNTED,) if by_counters else ()


def _best_k(summary: ServingSummary, arms: Sequence[Sequence[ServedFigures]]) -> dict[int, tuple[int, ...]]:
    """By concurrency, every k that no other one of the draft is surely ahead of."""
    found = {}
    for of_one in zip(*arms, strict=True):
        rivals = {one.arm: (one, summary) for one in of_one if one.ranked}
        if len(rivals) > 1:
            standings = _standings(rivals)
            found[of_one[0].concurrency] = tuple(
                one.k for name, (one, _) in rivals.items() if standings[name].rank[0] == 1
            )
    return found


def _worth(found: ServedFigures) -> tuple[bool, float]:
    return found.ranked, found.speedup or 0.0


def _figures(summary: ServingSummary, arm: ServedArm, concurrency: int) -> ServedFigures:
    """An arm's figures, not yet ranked against others."""
    cell = arm.cells[concurrency]
    findings: tuple[Finding, ...] = ()
    if arm.arm.kind == "draft":
        findings = judge_served(summary, arm, concurrency).findings
    known = cell.speedup is not None and cell.speedup.interval is not None
    passed = arm.arm.kind == "draft" and known and not findings
    return _plain_figures(arm.arm, cell, findings, ranked=passed)


def _plain_figures(
    arm: ServingArm, cell: ServedCell, findings: tuple[Finding, ...] = (), *, ranked: bool = False
) -> ServedFigures:
    speedup = cell.speedup
    acceptance = cell.acceptance
    return ServedFigures(
        arm=arm.id,
        k=arm.num_speculative_tokens,
        concurrency=cell.concurrency,
        rank=None,
        ranked=ranked,
        gates=tuple(finding.gate for finding in findings),
        reason=findings[0].reason if findings else None,
        speedup=speedup.value if speedup else None,
        ci=ends_of(speedup),
        throughput=cell.throughput,
        per_user=cell.per_user,
        tpot_s=cell.tpot.median.value if cell.tpot else None,
        tpot_ci=ends_of(cell.tpot.median if cell.tpot else None),
        tpot_p99_s=cell.tpot.p99.value if cell.tpot else None,
        ttft_s=cell.ttft.median.value if cell.ttft else None,
        ttft_ci=ends_of(cell.ttft.median if cell.ttft else None),
        ttft_p99_s=cell.ttft.p99.value if cell.ttft else None,
        acceptance_length=acceptance.length if acceptance else None,
        acceptance_rate=acceptance.rate if acceptance else None,
        memory_bytes=cell.memory_bytes,
        energy_per_token_j=cell.energy_per_token_j,
        client_cpu=cell.client_cpu,
        server_cpu=cell.server_cpu,
        rounds=len(cell.rounds),
        output=cell.fidelity.words,
    )


def _session(summary: ServingSummary) -> ServingBoardSession:
    baseline = summary.baseline
    plain = (
        {at: _plain_figures(baseline.arm, cell) for at, cell in baseline.cells.items() if cell.rounds}
        if baseline
        else {}
    )
    noise = {at: summary.noise(at) for at in summary.session.concurrencies}
    return ServingBoardSession(summary.session, plain, noise)


def _ranked(
    chosen: Mapping[str, tuple[ServedRow, ServingSummary]], concurrencies: Sequence[int]
) -> list[ServedRow]:
    """The rows with the range of ranks of each at every concurrency."""
    best = {draft: dict(row.best) for draft, (row, _) in chosen.items()}
    for at in concurrencies:
        rivals = {
            draft: (found[at], chosen[draft][1])
            for draft, found in best.items()
            if at in found and found[at].ranked
        }
        for draft, standing in _standings(rivals).items():
            best[draft][at] = replace(best[draft][at], rank=standing.rank)
    return [replace(row, best=best[draft]) for draft, (row, _) in chosen.items()]


def _standings(rivals: Mapping[str, tuple[ServedFigures, ServingSummary]]) -> dict[str, Standing]:
    """Where ranked figures of one concurrency stand among each other."""

    def faster(first: str, second: str) -> LogRatio:
        (one, summary), (other, its_summary) = rivals[first], rivals[second]
        return _ratio(summary, one.arm, its_summary, other.arm, one.concurrency)

    return stand_by({name: found.speedup or 0.0 for name, (found, _) in rivals.items()}, faster)


def _ratio(
    summary: ServingSummary, arm: str, other_summary: ServingSummary, other: str, concurrency: int
) -> LogRatio:
    """How much faster an arm is than another: from their rounds of the same blocks, else from both speedups."""
    if summary is other_summary:
        paired = compare_rounds(paired_rounds(summary.blocks, other, arm, concurrency))
        if paired is not None and paired.log is not None:
            return paired.log
    speedups = []
    for found, name in ((summary, arm), (other_summary, other)):
        cell = next(one.cells[concurrency] for one in found.arms if one.arm.id == name)
        assert cell.speedup is not None
        assert cell.speedup.log is not None  # too few rounds are not ranked
        speedups.append(cell.speedup.log)
    return difference(*speedups)


def serving_key_of(session: ServingSession) -> ServingKey:
    """The board that a session belongs to."""
    return ServingKey(
        session.target,
        session.target_weights_sha256,
        session.server,
        session.server_sha256,
        session.engine,
        minor_of(session.engine_version),
        session.machine.machine_class,
        session.dtype,
        session.device,
        session.suite,
        session.suite_sha256,
        sha256_of_json([turn.model_dump(mode="json", exclude={"token_ids"}) for turn in session.turns]),
        session.rate,
        minor_of(session.draftrank_version),
    )
