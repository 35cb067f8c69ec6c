"""The declaration of a server: which engine, how it is started, or where one runs already."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints, model_validator

from draftrank.catalog.backend import Device, Dtype
from draftrank.catalog.base import Declared, Identifier, Line, Text

EngineKind = Literal["vllm", "llama.cpp", "sglang"]
Address = Annotated[
    str,
    StringConstraints(
        pattern=r"^(https://[A-Za-z0-9][A-Za-z0-9.-]*|http://(127\.0\.0\.1|localhost))(:[0-9]{1,5})?$",
        max_length=200,
    ),
]
"""https anywhere, or http on this machine; without a path."""
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Z_][A-Z0-9_]*$", max_length=100)]
"""Name of an environment variable."""
OWN_FLAGS = frozenset(
    {"--host", "--port", "--model", "-m", "--served-model-name", "--alias", "--api-key", "--api-key-file"}
)
"""Flags that draftrank writes itself, and those that would put a secret into a file."""


class Attach(Declared):
    """Servers that run already; draftrank neither starts nor ends them."""

    url: Address
    """Address of the server without a draft: https, or http on this machine."""
    drafts: dict[Identifier, Address] = Field(default_factory=dict)
    """Addresses of the servers that run a draft, by the draft's id."""
    token_env: VariableName | None = None
    """Name of the environment variable with the bearer token. The token itself is never written to a file."""


class Server(Declared):
    """A server that drafts are measured in."""

    descriptive: ClassVar[frozenset[str]] = frozenset({"title", "description"})

    schema_version: Literal[1]
    """Version of this file's form."""
    id: Identifier
    """The server's name; its file has the same."""
    title: Line
    """Name for people."""
    description: Text | None = None
    """What it stands for."""
    engine: EngineKind
    """Which engine serves: `vllm`, `llama.cpp` or `sglang`."""
    dtype: Dtype
    """What it computes in."""
    device: Device = "cpu"
    """Where it computes."""
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Threads to compute with. Absent: as many as the process may use."""
    context: Annotated[int, Field(ge=16, le=1 << 24)]
    """Tokens that a prompt and its output may have together."""
    max_requests: Annotated[int, Field(ge=1, le=4096)] = 16
    """Requests that it works on at once; more wait."""
    kv_cache_gib: Annotated[int, Field(ge=1, le=4096)] | None = None
    """GiB of KV cache on a CPU; vLLM only. Absent: 2."""
    flags: tuple[Line, ...] = ()
    """More flags, one word each, for all arms alike."""
    environment: dict[VariableName, Line] = Field(default_factory=dict)
    """More environment variables, for all arms alike."""
    attach: Attach | None = None
    """Servers that run already, in place of starting some."""

    @model_validator(mode="after")
    def _own_flags(self) -> Server:
        for flag in self.flags:
            name = flag.partition("=")[0]
            if name in OWN_FLAGS:
                raise ValueError(f"flags: {name} is set by draftrank (fix: remove it)")
        return self

    @model_validator(mode="after")
    def _started_or_not(self) -> Server:
        given = [
            name
            for name in ("threads", "kv_cache_gib", "flags", "environment")
            if getattr(self, name) not in (None, (), {})
        ]
        if self.attach is not None and given:
            raise ValueError(
                f"{given[0]} is for a server that is started, and `attach` names one that runs (fix: remove one of them)"
            )
        return self

    @model_validator(mode="after")
    def _fits_engine(self) -> Server:
        if self.kv_cache_gib is not None and (self.engine != "vllm" or self.device != "cpu"):
            raise ValueError("kv_cache_gib is vLLM's on a CPU (fix: remove it)")
        return self
