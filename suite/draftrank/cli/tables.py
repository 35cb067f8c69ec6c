"""Boards and sessions as terminal tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.text import Text

from draftrank.board.earlier import EARLIER
from draftrank.board.formats import UNKNOWN, day, decimal, duration, percent, rank, size, span, times
from draftrank.board.references import ReferenceRow
from draftrank.board.rows import Board, BoardRow
from draftrank.cli.output import new_table, out, print_facts, print_head, print_table
from draftrank.measure.cost.model import Prediction
from draftrank.measure.records import Session
from draftrank.measure.statistics.comparing import ArmComparison
from draftrank.measure.statistics.estimates import Interval
from draftrank.measure.summaries.summary import ArmSummary

_LEGEND = (
    "Speedup over the autoregressive baseline of the same session: geometric mean over tasks, 95 % interval. "
    "Accept: tokens per verification step. Cost: one draft forward in target forwards; without a model, proposing per step."
)


def print_board(board: Board) -> None:
    """Prints one board: its head, the ranked rows and, with their reason, the others. Columns without any figure are
    left out."""
    key, newest = board.key, board.newest
    facts = (key.suite, key.backend_and_dtype, key.mode, key.machine_class, day(newest.measured_at))
    print_head(key.target, facts, key.draftrank_version if key.archived else None)
    noise = newest.noise
    apart = "unknown" if noise is None else f"{times(noise.value)} ({span(_ends(noise.interval))})"
    out.print(
        f"baseline {decimal(newest.baseline_tokens_per_second, 1)} tok/s · A/A {apart} · "
        f"{newest.prompts} prompts × {newest.repeats}"
    )
    if len(board.sessions) > 1:
        out.print(
            f"rows of {len(board.sessions)} sessions, each with a baseline of its own; that of the newest is shown"
        )
    names = (
        "rank",
        "draft",
        "k",
        "speedup",
        "95 % interval",
        "accept",
        "cost",
        "tok/s",
        *board.tasks,
        "output",
    )
    cells = [_cells(board, row) for row in board.rows]
    shown = [place for place in range(len(names)) if any(own[place] != UNKNOWN for own in cells)]
    table = new_table(*(names[place] for place in shown), left=("draft", "output"))
    for row, own in zip(board.rows, cells, strict=True):
        table.add_row(*(own[place] for place in shown), style="" if row.ranked else "dim")
    print_table(table)
    for row in board.rows:
        if not row.ranked:
            out.print(Text.assemble(("not ranked: ", "yellow"), f"{row.draft}: {row.reason}"))
    remarks: dict[str, list[str]] = defaultdict(list)
    for row in board.rows:
        for remark in (*row.remarks, *([f"{EARLIER}."] if row.earlier_recipe else [])):
            remarks[remark].append(row.draft)
    for remark, drafts in remarks.items():
        out.print(Text.assemble(("remark: ", "cyan"), f"{', '.join(drafts)}: {remark}"))
    for line in _reference_lines(board.references):
        out.print(Text.assemble(("reference: ", "cyan"), line))
    for warning in newest.warnings:
        out.print(Text(warning, "yellow"))
    out.print(Text(_LEGEND, "dim"))


def _cells(board: Board, row: BoardRow) -> list[str]:
    per_task = [row.per_task.get(task) for task in board.tasks]
    return [
        rank(row.rank) + (" lossy" if row.lossy and row.rank else ""),
        row.draft,
        str(row.k),
        times(row.speedup),
        span(row.ci),
        decimal(row.acceptance_length),
        decimal(row.draft_cost),
        decimal(row.tokens_per_second, 1),
        *(times(cell.speedup if cell else None) for cell in per_task),
        row.fidelity.status,
    ]


def _reference_lines(references: Sequence[ReferenceRow]) -> Iterator[str]:
    """One line per reference with this engine's arm beside it, then what differs, each sentence once."""
    for row in references:
        name = f"{row.implementation} {row.method.replace('_', ' ')}" + (f" {row.draft}" if row.draft else "")
        if row.failure is not None:
            yield f"{name}: failed: {row.failure}"
            continue
        yield (
            f"{name}: {decimal(row.tokens_per_second, 1)} tok/s, {times(row.speedup)} ({span(row.ci)}), "
            f"accept {decimal(row.acceptance_length)}, output {row.fidelity}; "
            f"{row.beside}: {decimal(row.beside_tokens_per_second, 1)} tok/s, "
            f"{times(row.beside_speedup)} ({span(row.beside_ci)})"
        )
    methods: dict[str, list[str]] = {}
    for row in references:
        for sentence in row.differs:
            named = methods.setdefault(sentence, [])
            if row.method not in named:
                named.append(row.method)
    for sentence, named in methods.items():
        yield f"{', '.join(named).replace('_', ' ')} differs: {sentence}"


def print_arm(session: str, arm: ArmSummary, remarks: Sequence[str], verdict: str | None) -> None:
    """Prints all that one session, named by its id, knows of one arm."""
    made = arm.arm.draft
    out.print(Text.assemble(("\n" + arm.arm.id, "bold"), f" in session {session}"))
    speedup = arm.speedup
    facts = {
        "speedup": f"{times(speedup.value if speedup else None)} ({span(_ends(speedup.interval) if speedup else None)})",
        "acceptance": f"length {decimal(arm.acceptance.length)}, rate {percent(arm.acceptance.rate)}",
        "by position": ", ".join(percent(share) for share in arm.acceptance.by_position) or "–",
        "histogram": " ".join(map(str, arm.acceptance.histogram)),
        "draft cost": decimal(arm.draft_cost, 3),
        "tokens/s": decimal(arm.timing.tokens_per_second, 1),
        "time": f"proposing {percent(arm.timing.propose_share)}, verifying {percent(arm.timing.verify_share)}, "
        f"loop {percent(arm.timing.other_share)}; first token after {duration(arm.timing.prefill_s)}",
        **_prediction(arm.prediction),
        "outliers": f"{arm.outliers} trials of unusual length, counted like all others"
        if arm.outliers
        else "none",
        "output": _output(arm),
        "memory": size(arm.arm.peak_memory_bytes),
    }
    if made is not None:
        facts["made by"] = ", ".join(made.techniques)
        facts["size"] = f"{made.parameters / 1e6:.1f} M parameters, {size(made.bytes_on_disk)}"
        facts["build"] = duration(made.build_s)
        facts["recipe"] = made.recipe_sha256
        facts["weights"] = made.weights_sha256 or "none of its own"
    if remarks:
        facts["remarks"] = " ".join(remarks)
    if arm.arm.reference is not None:
        facts["reference"] = f"{arm.arm.reference.implementation}, never ranked"
        facts["differs"] = " ".join(arm.arm.reference.differs)
    if arm.arm.failure is not None:
        facts["failed"] = arm.arm.failure
    if verdict is not None:
        facts["not ranked"] = verdict
    print_facts(facts)
    tasks = new_table("task", "speedup", "95 % interval", "accept", "tok/s", "outliers", "identical")
    for task in arm.tasks:
        tasks.add_row(
            task.task,
            times(task.speedup.value if task.speedup else None),
            span(_ends(task.shown_interval)),
            decimal(task.acceptance.length),
            decimal(task.timing.tokens_per_second, 1),
            str(task.outliers),
            percent(task.fidelity.exact_match),
        )
    print_table(tasks)


def _prediction(found: Prediction | None) -> dict[str, str]:
    if found is None:
        return {}
    facts = {"predicted": f"{times(found.speedup)} from forward times and acceptance"}
    if found.step is not None:
        step = found.step
        facts["predicted"] += f"; engine efficiency {percent(found.engine_efficiency)}"
        facts["step"] = (
            f"{step.total_ms:.1f} ms, predicted {step.predicted_ms:.1f}: drafting {step.draft_ms:.1f}, rest of "
            f"proposing {step.propose_overhead_ms:.1f}, verifying {step.verify_ms:.1f}, loop {step.rest_ms:.1f}"
        )
    facts["by k"] = by_k(found)
    facts["at most"] = (
        f"{times(found.bounds.free_draft)} if the draft were free, {times(found.bounds.perfect_draft)} if it "
        f"were always right, {times(found.bounds.ceiling)} if both"
    )
    return facts


def by_k(found: Prediction) -> str:
    """Predicted speedup by k in one line; `~` marks what lies beyond the measured k."""
    parts = [f"{at.k}: {'~' if at.extrapolated else ''}{times(at.speedup)}" for at in found.by_k]
    return (
        ", ".join(parts) + f"; best k {found.best.k}" + (" (~ extrapolated)" if "~" in "".join(parts) else "")
    )


def _output(arm: ArmSummary) -> str:
    found, quality = arm.fidelity, arm.quality
    parts = [f"{found.status}, {percent(found.exact_match)} identical"]
    if found.differing:
        parts.append(
            f"{found.ties} ties, {found.breaks} breaks; {percent(found.agreement)} of the tokens lie before "
            "the first difference"
        )
    if arm.arm.lossy and quality is not None:
        parts.append(
            f"log-likelihood {quality.log_likelihood:.3f} per token, ROUGE-L {decimal(quality.rouge_l)}, "
            f"{percent(quality.correct)} right answers"
        )
    if arm.arm.sampling is not None:
        parts.append(f"samples follow the target with p = {arm.arm.sampling.p_value:.2g}")
    return "; ".join(parts)


def print_comparison(found: ArmComparison, cautions: Mapping[str, str]) -> None:
    """Prints how two arms of one session compare; `cautions` say why an arm is not ranked."""
    session = found.session
    facts = (session.suite, session.backend_and_dtype, session.mode.label, f"session {session.id}")
    print_head(session.target, facts)
    out.print(Text(_sentence(found), "bold"))
    table = new_table("task", "ratio", "95 % interval", "probability", f"{found.first} is")
    rows = [*found.tasks.items(), *([("overall", found.overall)] if found.overall else [])]
    for name, one in rows:
        table.add_row(name, times(one.value), span(_ends(one.interval)), percent(one.probability), one.answer)
    print_table(table)
    for arm, reason in cautions.items():
        out.print(Text.assemble(("not ranked: ", "yellow"), f"{arm}: {reason}"))
    out.print(
        Text(
            f"Ratio: speed of {found.first} ÷ speed of {found.second}, over {found.cells} pairs of trials of "
            "the same prompts; overall the geometric mean over tasks. Probability: that it is above 1.",
            "dim",
        )
    )


def _sentence(found: ArmComparison) -> str:
    overall = found.overall
    if overall is None:
        return f"{found.first} and {found.second} have no prompt in common"
    if overall.answer == "can't tell":
        return f"can't tell whether {found.first} or {found.second} is faster"
    return f"{found.first} is {times(overall.value)} as fast as {found.second}"


def print_sessions(sessions: Iterable[Session]) -> None:
    """Prints one line per session."""
    names = ("session", "target", "suite", "dtype", "mode", "machine", "drafts", "state")
    table = new_table(*names, left=names)
    for session in sessions:
        drafts = sum(arm.kind == "draft" for arm in session.arms)
        state = "complete" if session.finished_at else "unfinished"
        table.add_row(
            session.id,
            session.target,
            session.suite,
            session.backend_and_dtype,
            session.mode.label,
            session.machine.machine_class,
            str(drafts),
            state,
        )
    print_table(table)


def _ends(interval: Interval | None) -> tuple[float, float] | None:
    return (interval.low, interval.high) if interval else None
