"""What a reader should know of a draft that its figures do not say."""

from __future__ import annotations

from collections.abc import Callable

from draftrank.measure.records import DraftBuild, Session


def remarks_on(session: Session, build: DraftBuild | None) -> tuple[str, ...]:
    """Every remark that holds for a draft in a session, in the order of `REMARKS`."""
    if build is None:
        return ()
    return tuple(text for text, holds in REMARKS if holds(session, build))


def _zeros_without_kernel(session: Session, build: DraftBuild) -> bool:
    return "sparsity" in build.techniques and session.device == "cpu"


REMARKS: tuple[tuple[str, Callable[[Session, DraftBuild], bool]], ...] = (
    (
        "Its zeros save no time here: kernels for CPU multiply them like any number.",
        _zeros_without_kernel,
    ),
)
