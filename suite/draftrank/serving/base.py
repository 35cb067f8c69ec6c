"""What every engine has in common: what it is given, and what a completion gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from draftrank.serving.http import Client

Method = Literal["ngram", "draft_model", "eagle3", "eagle"]


@dataclass(frozen=True, slots=True)
class Speculation:
    """A draft as an engine is given it."""

    method: Method
    num_speculative_tokens: int
    model: Path | None = None
    """The exported draft: a folder, or a GGUF file for llama.cpp; None for n-grams."""
    max_ngram: int = 0
    """Length of the longest n-gram that is looked up; n-grams only."""
    min_ngram: int = 0
    """Length of the shortest one; n-grams only."""


@dataclass(frozen=True, slots=True)
class Served:
    """A target, and how it is served."""

    model: Path
    """A folder, or a GGUF file for llama.cpp."""
    name: str
    """What it is served as."""
    port: int
    """Where to listen, on 127.0.0.1."""
    context: int
    """Tokens that a prompt and its output may have together."""
    dtype: str
    """What it computes in: `fp32`, `bf16` or `fp16`."""
    threads: int
    """Threads to compute with."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What starts a server."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A sequence to continue greedily."""

    prompt: tuple[int, ...]
    """Token ids, sent as they are."""
    max_new_tokens: int
    stop_tokens: frozenset[int]
    """Any of these ends the output and is its last token."""
    top: int = 0
    """How many of the most likely tokens to tell of every position, with their log-probabilities."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What a server made of a request, in the suite's terms: tokens = 1 + steps + accepted."""

    token_ids: tuple[int, ...]
    """Emitted tokens; the first comes from the prefill."""
    finish: Literal["stop", "length"]
    accepted: int
    """Proposed tokens that were accepted and emitted. One that ended the output stands for the step's bonus token, and
    what the server accepted behind it does not count."""
    proposed: int
    """Proposed tokens, as the server counts them."""
    prefill_s: float
    """Seconds from the request to the first token's arrival."""
    decode_s: float
    """Seconds from the first token's arrival to the last one's."""
    disagreement: str | None = None
    """How the server's figures contradict its output; None where they agree."""
    top: tuple[tuple[tuple[int, float], ...], ...] = ()
    """Of each token's position, the most likely token ids with their log-probabilities, where they were asked for."""

    @property
    def steps(self) -> int:
        """Verification forwards after the prefill."""
        return len(self.token_ids) - 1 - self.accepted


class Engine(ABC):
    """One installed engine."""

    name: ClassVar[str]
    """As users write it."""
    get: ClassVar[str]
    """How to get it, as the end of a sentence."""
    methods: ClassVar[frozenset[Method]]
    """Kinds of drafts that it serves."""

    def __init__(self, program: Path) -> None:
        self.program = program
        """What starts it."""

    @classmethod
    @abstractmethod
    def find(cls, root: Path) -> Path | None:
        """The program: named by a variable, set up in a workspace's `.engines/`, or on the path; None: it is not here."""

    @abstractmethod
    def version(self) -> str:
        """Its version, without starting a server.

        Raises:
            ServerError: the program does not run.
        """

    @abstractmethod
    def launch(self, served: Served, speculation: Speculation | None) -> Launch:
        """What starts a server, with a draft or, where that is None, without."""

    @abstractmethod
    async def complete(self, client: Client, request: CompletionRequest) -> Completion:
        """Continues a prompt.

        Raises:
            ServerError: the server failed, or answered something else than a completion.
        """


def own_engines(root: Path) -> Path:
    """Where `make engines` puts engines."""
    return root / ".engines"
