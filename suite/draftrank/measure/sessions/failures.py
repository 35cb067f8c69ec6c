"""What makes an arm fail in the middle of a session, and how that is worded on the board."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

from draftrank.errors import DraftrankError

if TYPE_CHECKING:
    from draftrank.engine.backends.base import Runtime
    from draftrank.engine.loop import Decoding, Request


class CacheError(DraftrankError):
    """The target's cache does not hold what was decoded."""


def check_cache(target: Runtime, request: Request, decoding: Decoding) -> None:
    """Compares what the target holds after a decoding with what its output leaves there.

    Every emitted token but the last has been read. A stop token may have been accepted in the middle of a
    step, whose other tokens were read too.

    Raises:
        CacheError: rejected tokens were not taken back, or others were lost.
    """
    left = len(request.prompt) + len(decoding.token_ids) - 1
    most = left + (len(decoding.offered) if decoding.finish == "stop" else 0)
    if not left <= target.length <= most:
        raise CacheError(
            f"the target's cache holds {target.length} tokens after an output that leaves {left}: "
            "rejected tokens were not taken back as they should"
        )


def reason_of(error: Exception) -> str:
    """Why an arm failed, on one line."""
    if isinstance(error, ValidationError):  # of a trial that contradicts itself
        faults = (
            f"{'.'.join(map(str, one['loc']))} {one['msg']}".strip().removeprefix("Value error, ")
            for one in error.errors()
        )
        return "what it measured contradicts itself: " + "; ".join(faults)
    return str(error) if isinstance(error, DraftrankError) else f"{type(error).__name__}: {error}"
