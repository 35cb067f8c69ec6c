"""The engines by name."""

from __future__ import annotations

from pathlib import Path

from draftrank.errors import MissingDataError
from draftrank.serving.base import Engine
from draftrank.serving.llama_cpp import LlamaCpp
from draftrank.serving.sglang import Sglang
from draftrank.serving.vllm import Vllm

ENGINES: dict[str, type[Engine]] = {kind.name: kind for kind in (Vllm, LlamaCpp, Sglang)}


def engine_elsewhere(name: str) -> Engine:
    """An engine whose servers run already: it need not be here."""
    return ENGINES[name](None)


def find_engine(name: str, root: Path) -> Engine:
    """An engine of this machine by its name; it may lie in the `.engines/` of the workspace at `root`.

    Raises:
        MissingDataError: it is not here; says how to get it.
    """
    kind = ENGINES[name]
    program = kind.find(root)
    if program is None:
        raise MissingDataError(f"{name} is not here: {kind.get}")
    return kind(program)
