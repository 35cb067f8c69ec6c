"""What a gate is: a condition of being ranked, told with the check that judges it.

A check returns the values of its gate's reason when a result fails it. The methodology page lists the gates with the
docstrings of their checks, so a gate and its explanation cannot drift apart.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

Values = dict[str, str]
Check = Callable[..., Values | None]
"""Takes what a gate judges: a summary and an arm, and of serving sessions a concurrency."""
Scope = Literal["draft", "session"]


@dataclass(frozen=True, slots=True)
class Gate:
    """One condition of being ranked."""

    id: str
    """Short name."""
    scope: Scope
    """Whether it judges the draft or the session that measured it."""
    reason: str
    """What a reader is told, with `{named}` values."""
    check: Check
    """The values of the reason when the result fails; None when it passes."""

    @property
    def meaning(self) -> str:
        """What the gate is for, in one paragraph."""
        return " ".join((inspect.getdoc(self.check) or "").split())


@dataclass(frozen=True, slots=True)
class Finding:
    """A gate that a result did not pass."""

    gate: str
    scope: Scope
    reason: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a result is ranked."""

    findings: tuple[Finding, ...]
    """Every gate it did not pass, the weightiest first."""

    @property
    def ranked(self) -> bool:
        """Whether it passed all gates."""
        return not self.findings

    @property
    def reason(self) -> str | None:
        """The weightiest reason against ranking it; None when ranked."""
        return self.findings[0].reason if self.findings else None


def gate(id: str, scope: Scope, reason: str) -> Callable[[Check], Gate]:  # noqa: A002
    """Makes a gate of a check."""
    return lambda check: Gate(id, scope, reason, check)


def put_through(gates: Iterable[Gate], *judged: object) -> Verdict:
    """Asks every gate about one result."""
    findings = []
    for one in gates:
        values = one.check(*judged)
        if values is not None:
            findings.append(Finding(one.id, one.scope, one.reason.format(**values)))
    return Verdict(tuple(findings))
