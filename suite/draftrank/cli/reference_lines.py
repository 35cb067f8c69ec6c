"""References in words, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from draftrank.board.formats import decimal, span, times
from draftrank.board.references import ReferenceRow


def reference_lines(references: Sequence[ReferenceRow]) -> Iterator[str]:
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
