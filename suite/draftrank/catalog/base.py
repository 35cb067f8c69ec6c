"""What all declarations share: strict fields, named identifiers and identity by content."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

Identifier = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9](?:[a-z0-9.-]{0,62}[a-z0-9])?$", max_length=64)
]
"""Lower-case letters, digits, dots and dashes: also a file's stem and part of an address."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""64 lower-case hex digits."""

Line = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
"""One line of text without control characters."""

Text = Annotated[str, StringConstraints(min_length=1, max_length=20_000)]
"""Free text of any number of lines."""


def _inside(path: str) -> str:
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError("the path leaves its folder (fix: write a relative path without `..`)")
    return path


RelativePath = Annotated[
    str, StringConstraints(pattern=r"^[\w .+()/-]+$", max_length=500), AfterValidator(_inside)
]
"""A path with forward slashes that stays inside its folder."""


class Declared(BaseModel):
    """A declared thing: unknown fields are errors, values keep their types, nothing changes later."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
    )

    descriptive: ClassVar[frozenset[str]] = frozenset()
    """Fields that describe and do not take part in the content's identity."""

    def content_sha256(self) -> str:
        """Identity by content: 64 hex digits.

        Comments, key order and descriptive fields do not change it, nor does writing out a default;
        so a default never changes its value without a new `schema_version`.
        """
        content = self.model_dump(mode="json", exclude_defaults=True)
        for name in self.descriptive:
            content.pop(name, None)
        return sha256_of_json(content)


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_of_json(value: Any) -> str:
    """sha256 (hex) of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
