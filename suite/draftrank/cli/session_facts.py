"""One session as a terminal card: where it ran, how calm it was there, and what ended it."""

from __future__ import annotations

from rich.text import Text

from draftrank.board.formats import duration, size
from draftrank.cli.output import out, print_facts
from draftrank.measure.evidence import Environment, Numerics
from draftrank.measure.fidelity.divergence import blind_share
from draftrank.measure.records import Machine, Session
from draftrank.measure.summaries.stability import Stability
from draftrank.measure.summaries.summary import SessionSummary

_ENDINGS = {
    "repeats": "the required repeats were done",
    "target_ci": "every interval became as narrow as asked",
    "spread": "more repeats could not have narrowed the intervals: the prompts differ by more",
    "budget": "the budget was spent",
}


def print_session(summary: SessionSummary) -> None:
    """Prints what all arms of a session have in common."""
    session = summary.session
    out.print(Text.assemble(("\n" + session.id, "bold"), f" of {session.created_at}"))
    facts = {
        "measured": f"{session.target}, {session.suite}, {session.backend_and_dtype}, {session.mode.label}",
        "machine": _machine(session.machine),
        **_environment(session.environment),
        "packages": ", ".join(f"{name} {version}" for name, version in session.machine.packages.items()),
        "suite": _suite(session),
        "calm": _calm(summary.stability),
    }
    for rule in summary.stability.rules:
        facts[f"  {rule.rule}"] = f"{rule.prompt_turns} × e.g. {rule.example}; {rule.fix}"
    if session.numerics is not None and session.numerics.quantiles:
        facts["rounding"] = _rounding(session.numerics)
    facts["ended"] = _ended(session)
    facts["interval width"] = _interval_width(summary)
    for number, warning in enumerate(session.warnings, 1):
        facts[f"warning {number}"] = warning
    print_facts(facts)


def _rounding(numerics: Numerics) -> str:
    told = f"moves gaps between logits by up to {numerics.quantiles[-1]:g} (at {numerics.positions} places)"
    blind = blind_share(numerics)
    if blind is not None:
        told += f"; a wrong second-best token would pass for a tie at {blind:.0%} of them"
    return told


def _machine(machine: Machine) -> str:
    parts = [
        machine.machine_class,
        machine.cpu,
        f"{machine.cores} cores, {machine.threads} threads",
        size(machine.memory_bytes),
        machine.gpu,
        machine.platform,
        f"Python {machine.python}",
    ]
    return " · ".join(part for part in parts if part)


def _environment(environment: Environment | None) -> dict[str, str]:
    if environment is None:
        return {"environment": "not kept by the version that measured it"}
    hertz = environment.frequency_max_hz
    facts = {
        "instructions": ", ".join(environment.instruction_sets),
        "torch": environment.torch_build,
        "threads": ", ".join(f"{name}={value}" for name, value in environment.thread_variables.items()),
        "affinity": ", ".join(map(str, environment.affinity)),
        "quota": None if environment.quota_cpus is None else f"{environment.quota_cpus:g} processors",
        "memory limit": _size(environment.memory_limit_bytes),
        "memory free": _size(environment.memory_available_bytes),
        "governor": environment.governor,
        "clock": f"up to {hertz / 1e9:.2f} GHz" if hertz else None,
        "load before": None if environment.load_average is None else f"{environment.load_average:.2f}",
        "gpu driver": environment.gpu_driver,
        "gpu limit": f"{environment.gpu_power_limit_w:.0f} W" if environment.gpu_power_limit_w else None,
        "gpu clock": f"up to {environment.gpu_clock_max_hz / 1e9:.2f} GHz"
        if environment.gpu_clock_max_hz
        else None,
    }
    return {name: value for name, value in facts.items() if value}


def _size(value: int | None) -> str | None:
    return None if value is None else size(value)


def _suite(session: Session) -> str:
    commit = session.environment.suite_commit if session.environment else None
    if commit is None:
        return f"draftrank {session.draftrank_version}; the workspace is under no version control known"
    dirty = (
        " with changes that are not committed"
        if session.environment and session.environment.suite_dirty
        else ""
    )
    return f"draftrank {session.draftrank_version}; the workspace at commit {commit[:12]}{dirty}"


def _calm(stability: Stability) -> str:
    if not stability.watched:
        return "the machine was not watched, or its counters could not be read"
    return (
        f"of {stability.prompt_turns} prompt turns {stability.watched} were watched, {stability.repeated} decoded "
        f"again; {stability.disturbed} stayed disturbed, {stability.throttled} slowed down"
    )


def _ended(session: Session) -> str:
    if session.finished_at is None:
        return "not yet: run the same command again to go on"
    return _ENDINGS[session.stopped_by] if session.stopped_by else "at the end of its repeats"


def _interval_width(summary: SessionSummary) -> str:
    asked, reached = summary.session.target_ci, summary.ci_reached
    parts = [
        "unknown: an arm has no interval" if reached is None else f"±{reached:.1%} in the widest interval",
        "none asked" if asked is None else f"±{asked:.1%} asked",
        None if summary.session.budget_s is None else f"budget {duration(summary.session.budget_s)}",
    ]
    return ", ".join(part for part in parts if part)
