"""References on a board: what other implementations made of the same prompts, never ranked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

from pydantic import ConfigDict, with_config

from draftrank.measure.statistics.estimates import ends_of
from draftrank.measure.summaries.summary import ArmSummary, SessionSummary

DOCUMENTED = ConfigDict(use_attribute_docstrings=True)
"""Types that the published documents are made of: their docstrings become the schema's descriptions."""


@with_config(DOCUMENTED)
@dataclass(frozen=True, slots=True)
class ReferenceRow:
    """One way of decoding by another implementation, with this engine's beside it."""

    id: str
    """Id of the arm."""
    implementation: str
    """Package and version."""
    method: str
    """`generate`, `assisted` or `prompt_lookup`."""
    draft: str | None
    """Id of the draft that it used; None without one."""
    k: int
    """Tokens proposed per step at most; 0 without a draft."""
    speedup: float | None
    """Over this engine's baseline of the same session."""
    ci: tuple[float, float] | None
    """95 % interval of the speedup."""
    acceptance_length: float | None
    tokens_per_second: float | None
    beside: str
    """Id of this engine's arm that does the same."""
    beside_speedup: float | None
    """That arm's speedup; exactly 1 for the baseline."""
    beside_ci: tuple[float, float] | None
    beside_tokens_per_second: float | None
    fidelity: str
    """Whether its outputs are the baseline's."""
    differs: tuple[str, ...]
    """How it differs from this engine's arm, in sentences."""
    failure: str | None
    """Why it has no or not all outputs; None when it ran."""
    session: str
    """Id of the session that measured it."""


def references_of(summary: SessionSummary) -> tuple[ReferenceRow, ...]:
    """Every reference of a session, in the order of its arms."""
    arms = {arm.arm.id: arm for arm in summary.arms}
    found = []
    for arm in summary.arms:
        reference = arm.arm.reference
        if reference is None:
            continue
        beside = arms.get(reference.draft) if reference.draft else summary.baseline
        if beside is not None:
            found.append(_row(summary, arm, beside))
    return tuple(found)


def newest_of(newest_first: Iterable[Iterable[ReferenceRow]]) -> tuple[ReferenceRow, ...]:
    """Every reference of these sessions once, each from the newest session in which it ran."""
    found: dict[str, ReferenceRow] = {}
    for row in chain.from_iterable(newest_first):
        known = found.get(row.id)
        if known is None or (known.failure is not None and row.failure is None):
            found[row.id] = row
    return tuple(found[name] for name in sorted(found))


def _row(summary: SessionSummary, arm: ArmSummary, beside: ArmSummary) -> ReferenceRow:
    reference = arm.arm.reference
    assert reference is not None
    return ReferenceRow(
        id=arm.arm.id,
        implementation=reference.implementation,
        method=reference.method,
        draft=reference.draft,
        k=arm.arm.num_speculative_tokens,
        speedup=arm.speedup.value if arm.speedup else None,
        ci=ends_of(arm.speedup),
        acceptance_length=arm.acceptance.length,
        tokens_per_second=arm.timing.tokens_per_second,
        beside=beside.arm.id,
        beside_speedup=beside.speedup.value if beside.speedup else None,
        beside_ci=ends_of(beside.speedup),
        beside_tokens_per_second=beside.timing.tokens_per_second,
        fidelity=arm.fidelity.status,
        differs=reference.differs,
        failure=arm.arm.failure,
        session=summary.session.id,
    )
