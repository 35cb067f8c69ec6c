"""What pages and messages call a board."""

from __future__ import annotations

from draftrank.board.rows import BoardKey

_OLDER_BACKENDS = {
    "torch-eager": "transformers",
    "torch-fused": "fused",
    "torch-native": "cpp",
    "torch-captured": "cuda-graphs",
}
"""Backends as records before 0.3 spell them."""


def backend_label(key: BoardKey) -> str:
    """Backend and dtype, e.g. `cpp bf16`."""
    backend = key.runtime
    return f"{_OLDER_BACKENDS.get(backend, backend)} {key.dtype}"


def place_of(key: BoardKey) -> str:
    """A board in a few words, without its target; an archived one says so."""
    words = f"{key.suite}, {backend_label(key)}, {key.mode}, {key.machine_class}"
    return f"{words} (archived, draftrank {key.draftrank_version})" if key.archived else words


def title_of(key: BoardKey) -> str:
    """A board in a few words."""
    return f"{key.target}: {place_of(key)}"
