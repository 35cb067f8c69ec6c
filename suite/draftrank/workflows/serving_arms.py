"""The servers of a serving session: one for each arm, started one after the other and paused while another one has load."""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import psutil

from draftrank.catalog.plain_text import UNSEEN
from draftrank.catalog.server import Server
from draftrank.errors import InvalidInputError
from draftrank.measure.machine.processor import processors_of_this_process
from draftrank.measure.serving_records import ServingArm
from draftrank.serving.base import Engine, Launch, Served, Speculation
from draftrank.serving.http import Client, ServerError
from draftrank.serving.load import model_of
from draftrank.serving.process import ServerProcess, free_port, running

NAME = "draftrank"
MEMORY_SHARE = 0.9
"""Share of the memory that is available which servers may take."""
MAX_LOG = 8000
"""Characters of a log's end that are recorded."""


@dataclass(slots=True)
class OpenServer:
    """A server that can be sent requests."""

    client: Client
    process: ServerProcess | None
    """None for one that runs elsewhere."""
    closing: ExitStack
    flags: tuple[str, ...] = ()
    start_s: float | None = None
    pausing: bool = True
    """Whether it is stopped while it has no load."""
    started: int = 1
    """How often it had been started, as far as its counters tell."""

    @property
    def alive(self) -> bool:
        """Whether it runs, as far as can be told."""
        return self.process is None or self.process.alive

    def pause(self) -> None:
        """Takes the processors from it, where it is ours and that is asked for."""
        if self.process is not None and self.pausing:
            self.process.pause()

    def resume(self) -> None:
        """Gives them back."""
        if self.process is not None:
            self.process.resume()

    def cpu_s(self) -> float:
        """Processor seconds that it has taken; 0 for one that runs elsewhere."""
        return self.process.cpu_s() if self.process is not None else 0.0

    def ended(self, why: str) -> ServerError:
        """An error that tells why it is out, with the end of its log."""
        return self.process.ended(why) if self.process is not None else ServerError(why)


@dataclass(slots=True)
class Servers:
    """Starts servers of one declaration, and ends them."""

    engine: Engine
    declared: Server
    model: Path
    """The target as the engine reads it."""
    logs: Path
    """Folder of their logs."""
    root: Path
    """The workspace, whose place is not recorded."""
    idle_s: float
    """Seconds without a byte after which a request counts as hung."""
    pausing: bool = True
    """Whether servers are stopped while they have no load."""
    start_s: float = 900.0
    """Seconds after which a server must be ready."""
    opened: dict[str, OpenServer] = field(default_factory=dict)
    """By the id of their arm."""

    def open(self, arm: ServingArm, speculation: Speculation | None) -> OpenServer:
        """Starts an arm's server and waits until it is ready, or finds the one that runs.

        Raises:
            ServerError: it does not come up.
        """
        opened = self._attached(arm) if self.declared.attach else self._started(arm, speculation)
        self.opened[arm.id] = opened
        return opened

    def close(self, arm: str) -> None:
        """Ends an arm's server, if it is open."""
        opened = self.opened.pop(arm, None)
        if opened is not None:
            opened.closing.close()

    def close_all(self) -> None:
        """Ends all of them."""
        for arm in list(self.opened):
            self.close(arm)

    def hold(self, bytes_of_first: int) -> int:
        """How many more servers memory holds beside the first one."""
        if self.declared.attach or not bytes_of_first:
            return 1 << 30
        return int(psutil.virtual_memory().available * MEMORY_SHARE / bytes_of_first)

    def shown(self, text: str) -> str:
        """A text for records: without places of this machine and without characters that show nothing."""
        for place, name in ((str(self.root), "<workspace>"), (str(Path.home()), "~")):
            text = text.replace(place, name)
        return UNSEEN.sub("", re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text))[-MAX_LOG:]

    def _started(self, arm: ServingArm, speculation: Speculation | None) -> OpenServer:
        declared, port = self.declared, free_port()
        served = Served(
            self.model,
            NAME,
            port,
            declared.context,
            declared.dtype,
            threads_of(declared),
            device=declared.device,
            max_requests=declared.max_requests,
            kv_cache_gib=declared.kv_cache_gib,
            flags=declared.flags,
            environment=declared.environment,
        )
        launch = self.engine.launch(served, speculation)
        log = self.logs / f"{declared.id}-{arm.id}.log"
        log.unlink(missing_ok=True)
        began = perf_counter()
        with ExitStack() as stack:
            process = stack.enter_context(
                running(
                    launch.command,
                    port,
                    log,
                    name=NAME,
                    environment=launch.environment,
                    start_s=self.start_s,
                    idle_s=self.idle_s,
                )
            )
            return OpenServer(
                process.client,
                process,
                stack.pop_all(),
                _flags(launch, served, speculation),
                round(perf_counter() - began, 3),
                self.pausing,
            )

    def _attached(self, arm: ServingArm) -> OpenServer:
        attach = self.declared.attach
        assert attach is not None
        address = attach.url if arm.draft_id is None else attach.drafts[arm.draft_id]
        client = Client.at(address, token=token_of(self.declared), idle_s=self.idle_s)
        client.model = model_of(client)
        return OpenServer(client, None, ExitStack())


def threads_of(declared: Server) -> int:
    """Threads that its servers compute with."""
    return declared.threads or len(processors_of_this_process())


def token_of(declared: Server) -> str | None:
    """The bearer token of servers that run already, from the environment.

    Raises:
        InvalidInputError: the variable that the declaration names is not set.
    """
    name = declared.attach.token_env if declared.attach else None
    if name is None:
        return None
    token = os.environ.get(name)
    if not token:
        raise InvalidInputError.single(
            f"the environment has no {name}",
            file=f"tasks/servers/{declared.id}.yaml",
            field="attach.token_env",
            fix=f"set {name} to the token of the server",
        )
    return token


def _flags(launch: Launch, served: Served, speculation: Speculation | None) -> tuple[str, ...]:
    """How it was started, for records: without the program, paths, ports and what it is called."""
    places = {str(served.model): "TARGET", str(served.port): "PORT"}
    if speculation is not None and speculation.model is not None:
        places[str(speculation.model)] = "DRAFT"
    words = []
    for word in launch.command[1:]:
        shown = places.get(word, word)
        for place, name in places.items():
            if "/" in place:
                shown = shown.replace(place, name)
        words.append(Path(shown).name if shown.startswith("/") else shown)
    return tuple(words)
