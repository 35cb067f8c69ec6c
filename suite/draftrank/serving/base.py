"""What every engine has in common: what it is given, and what a completion gives."""

from __future__ import annotations

import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from draftrank.errors import InvalidInputError, MissingDataError
from draftrank.serving.http import Client, ServerError

Method = Literal["ngram", "suffix", "draft_model", "eagle3", "eagle"]
"""Kinds of drafts that recipes declare; engines have more methods under names of their own."""


@dataclass(frozen=True, slots=True)
class Speculation:
    """A draft as an engine is given it."""

    method: str
    """A `Method`, or with `own` a method as the engine names it."""
    num_speculative_tokens: int
    model: Path | None = None
    """The exported draft: a folder, or a GGUF file for llama.cpp; None for n-grams."""
    max_ngram: int = 0
    """Length of the longest n-gram that is looked up; n-grams only."""
    min_ngram: int = 0
    """Length of the shortest one; n-grams only."""
    options: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    """More settings as the engine names them."""
    own: bool = False
    """Whether `method` is the engine's own name, to be passed on as it is."""


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
    device: str = "cpu"
    """Where it computes: `cpu` or `cuda`."""
    max_requests: int = 1
    """Requests that it works on at once."""
    kv_cache_gib: int | None = None
    """GiB of KV cache, where the engine asks for it."""
    flags: tuple[str, ...] = ()
    """More flags."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """More environment variables."""


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
    """Emitted tokens, without those that the stream left out; the first comes from the prefill."""
    finish: Literal["stop", "length"]
    accepted: int
    """Proposed tokens that were accepted and emitted. One that ended the output stands for the step's bonus token, and
    what the server accepted behind it does not count."""
    proposed: int | None
    """Proposed tokens, as the server counts them; None where it does not tell."""
    began: float
    """When the request was sent, by `perf_counter`."""
    arrivals: tuple[tuple[float, int], ...]
    """Of each event with tokens: when it arrived, and how many it brought; together all tokens."""
    disagreement: str | None = None
    """How the server's figures contradict its output; None where they agree."""
    joined: bool = False
    """Whether the disagreement is only that some event brought the tokens of several steps, as busy servers do."""
    gaps: frozenset[int] = frozenset()
    """Indices in the output of tokens that the stream left out, so that `token_ids` lacks them."""
    figures: bool = True
    """Whether the server told of acceptance; where it did not, `accepted` and `proposed` say nothing."""
    top: tuple[tuple[tuple[int, float], ...], ...] = ()
    """Of each token's position, the most likely token ids with their log-probabilities, where they were asked for."""

    @property
    def prefill_s(self) -> float:
        """Seconds from the request to the first token's arrival."""
        return self.arrivals[0][0] - self.began

    @property
    def decode_s(self) -> float:
        """Seconds from the first token's arrival to the last one's."""
        return self.arrivals[-1][0] - self.arrivals[0][0]

    @property
    def steps(self) -> int:
        """Verification forwards after the prefill."""
        return len(self.token_ids) - 1 - self.accepted


@dataclass(frozen=True, slots=True)
class Counts:
    """A server's own running counters."""

    drafts: int
    """Steps that proposed something."""
    proposed: int
    """Proposed tokens."""
    accepted: int
    """Accepted tokens."""

    def since(self, before: Counts) -> Counts | None:
        """What was counted since; None where a counter went back, so that the server started anew in between."""
        passed = Counts(
            self.drafts - before.drafts,
            self.proposed - before.proposed,
            self.accepted - before.accepted,
        )
        return None if min(passed.drafts, passed.proposed, passed.accepted) < 0 else passed


class Engine(ABC):
    """One engine: how it is started and asked."""

    name: ClassVar[str]
    """As users write it."""
    get: ClassVar[str]
    """How to get it, as the end of a sentence."""
    methods: ClassVar[frozenset[Method]]
    """Kinds of drafts that it serves."""
    own_methods: ClassVar[frozenset[str]]
    """Methods under its own names, for drafts of the kind `engine_method`."""
    variable: ClassVar[str]
    """Environment variable that names the program."""
    own_program: ClassVar[str]
    """The program below `.engines/`, where `make engines` puts engines."""
    asks_version: ClassVar[tuple[str, ...]]
    """Arguments with which the program tells the engine's version."""

    def __init__(self, program: Path | None) -> None:
        self._program = program

    @property
    def program(self) -> Path:
        """What starts it.

        Raises:
            MissingDataError: it is not here; says how to get it.
        """
        if self._program is None:
            raise MissingDataError(f"{self.name} is not here: {self.get}")
        return self._program

    @classmethod
    def find(cls, root: Path) -> Path | None:
        """The program: named by a variable, set up in a workspace's `.engines/`, or on the path; None: it is not here."""
        named = os.environ.get(cls.variable)
        if named:
            return Path(named)
        own = root / ".engines" / cls.own_program
        return own if own.is_file() else cls.on_path()

    @classmethod
    def on_path(cls) -> Path | None:
        """The program by the path; None: it is not there."""
        return None

    def version(self) -> str:
        """Its version, without starting a server.

        Raises:
            ServerError: the program does not run, or has no such engine.
        """
        command = [str(self.program), *self.asks_version]
        try:
            told = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ServerError(f"{self.program} does not run: {error}") from error
        found = None if told.returncode else self.version_in(told.stdout, told.stderr)
        if found is None:
            raise ServerError(f"{self.program} tells no version of {self.name}: {told.stderr.strip()[-300:]}")
        return found

    def version_in(self, output: str, errors: str) -> str | None:
        """The version in what the program wrote when it was asked; None: it tells none."""
        return next((word.partition("+")[0] for word in output.split()), None)

    @abstractmethod
    def launch(self, served: Served, speculation: Speculation | None) -> Launch:
        """What starts a server, with a draft or, where that is None, without."""

    @abstractmethod
    def takes_option(self, name: str) -> bool:
        """Whether a draft of the kind `engine_method` may set this."""

    def check(self, speculation: Speculation) -> None:
        """Refuses a draft that it does not serve, before anything starts.

        Raises:
            InvalidInputError: the method or an option is unknown here.
        """
        known: frozenset[str] = self.own_methods if speculation.own else self.methods
        if speculation.method not in known:
            raise InvalidInputError.single(
                f"{self.name} has no method {speculation.method!r}",
                field="draft.method",
                fix=f"known: {', '.join(sorted(known))}",
            )
        for name in speculation.options if speculation.own else ():
            if not self.takes_option(name):
                raise InvalidInputError.single(
                    f"{self.name} takes no option {name!r} of a draft",
                    field=f"draft.options.{name}",
                    fix="see the engine's documentation of speculative decoding; what draftrank sets itself cannot be set",
                )

    @abstractmethod
    async def served_version(self, client: Client) -> str:
        """The version of a server that runs.

        Raises:
            ServerError: it does not tell.
        """

    async def counters(self, client: Client) -> Counts | None:
        """The server's own counters now; None where it has none.

        Raises:
            ServerError: the server failed.
        """
        return None

    @abstractmethod
    async def complete(self, client: Client, request: CompletionRequest) -> Completion:
        """Continues a prompt.

        Raises:
            ServerError: the server failed, or answered something else than a completion.
        """

    async def filled(self, client: Client, request: CompletionRequest, completion: Completion) -> Completion:
        """The completion with the tokens that its stream left out, asked for behind those that came.

        Raises:
            ServerError: the server failed, or goes on otherwise than in its stream.
        """
        return completion
