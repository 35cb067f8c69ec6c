"""Parity in words, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from draftrank.board.formats import decimal
from draftrank.catalog.programs import NAMES
from draftrank.measure.parity import LengthRatio, Parity, ParityReport, report_of
from draftrank.measure.statistics.estimates import ends_of

NOT_SHOWN = ("build", "tasks", "machine", "turns")
"""Fields of a record that the document leaves out."""
_VERDICTS = {"holds": "parity holds", "fails": "no parity", "undecided": "undecided"}


@dataclass(frozen=True, slots=True)
class Proof:
    """A draft's newest parity with one engine."""

    parity: Parity
    report: ParityReport

    @property
    def engine(self) -> str:
        """The engine and its version."""
        return f"{NAMES[self.parity.engine]} {self.parity.engine_version}"

    @property
    def verdict(self) -> str:
        """`parity holds`, `no parity` or `undecided`."""
        return _VERDICTS[self.report.verdict]

    @property
    def sentence(self) -> str:
        """What was found, in one sentence."""
        lengths = self.report.overall
        found = lengths.ratio
        ends = f", {found.interval}" if found and found.interval else ""
        ratio = f" (ratio {found.value:.2f}{ends})" if found else ""
        outputs, target = self.report.outputs, self.report.target
        alike = (
            ""
            if target.sentence() == "identical"
            else f"; without the draft, {target.sentence()} from those here"
        )
        return (
            f"{self.engine}: acceptance length {decimal(lengths.there)} against {decimal(lengths.here)} here{ratio}, "
            f"outputs {outputs.sentence()}{alike}"
        )


def proofs_of(parities: Iterable[Parity]) -> tuple[Proof, ...]:
    """Of each engine, dtype and backend the newest record, by engine."""
    newest: dict[tuple[str, str, str], Parity] = {}
    for parity in sorted(parities, key=lambda one: (one.created_at, one.id)):
        newest[parity.engine, parity.dtype, parity.backend] = parity
    return tuple(Proof(newest[key], report_of(newest[key])) for key in sorted(newest))


def parity_document(parity: Parity, report: ParityReport) -> dict[str, Any]:
    """The report with the record's header, plain JSON values only."""
    return parity.model_dump(mode="json", exclude=set(NOT_SHOWN)) | {
        "machine_class": parity.machine.machine_class,
        "recipe_sha256": parity.build.recipe_sha256,
        "weights_sha256": parity.build.weights_sha256,
        "verdict": report.verdict,
        "reasons": list(report.reasons),
        "acceptance": _lengths(report.overall),
        "per_task": {task: _lengths(lengths) for task, lengths in report.tasks.items()},
        "tokens_per_second": asdict(report.speeds),
        "outputs": asdict(report.outputs),
        "target_outputs": asdict(report.target),
        "disagreements": list(report.disagreements),
    }


def _lengths(lengths: LengthRatio) -> dict[str, Any]:
    ends = ends_of(lengths.ratio)
    return {
        "here": lengths.here,
        "there": lengths.there,
        "ratio": lengths.ratio.value if lengths.ratio else None,
        "ci": list(ends) if ends else None,
    }
