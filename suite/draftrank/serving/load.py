"""Load on a server: many requests from one process, in a closed loop or at given moments, every event stamped.

One asyncio process suffices: a request costs the client tens of microseconds an event. It shares the machine with the
server, so its own processor time is measured too.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter, process_time

from draftrank.serving.base import Completion, CompletionRequest, Counts, Engine
from draftrank.serving.http import Client, ServerError

MAX_FAILED_IN_A_ROW = 3
"""Failed requests in a row, beyond those in flight at once, after which no more are sent: each may have waited for long."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one request."""

    request: int
    """Index into the requests that were given."""
    sent: float
    """When it was sent, by `perf_counter`."""
    ended: float
    """When its last token came, or it failed."""
    completion: Completion | None
    """None where it failed."""
    failure: str | None = None
    """Why it failed."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a server made of all requests."""

    answers: tuple[Answer, ...]
    """In the order in which they were sent."""
    client_cpu_s: float
    """Processor seconds that this process took."""

    @property
    def began(self) -> float:
        """When the first request was sent."""
        return self.answers[0].sent

    @property
    def wall_s(self) -> float:
        """Seconds from sending the first request to the last request's end."""
        return max(answer.ended for answer in self.answers) - self.began

    @property
    def failed(self) -> int:
        """Requests without a complete answer."""
        return sum(answer.completion is None for answer in self.answers)


def put_load(
    engine: Engine,
    client: Client,
    requests: Sequence[CompletionRequest],
    order: Sequence[int],
    concurrency: int,
    *,
    moments: Sequence[float] | None = None,
    alive: Callable[[], bool] = lambda: True,
    done: Callable[[], None] = lambda: None,
) -> Load:
    """Sends requests, at most `concurrency` at once.

    Args:
        engine: what the server runs.
        client: talks to it.
        requests: what can be sent.
        order: indices into `requests` in the order of sending.
        concurrency: requests in flight at once.
        moments: of an open loop, for every entry of `order` the seconds after the start at which it is to be sent, ascending;
            one that finds no room is sent later. None: a closed loop, which sends the next one as soon as there is room.
        alive: whether the server still runs; once it does not, nothing more is sent.
        done: called behind each request.

    Returns:
        An answer for every entry of `order`; those that were not sent have failed.
    """

    async def send_all() -> list[Answer]:
        return await _Sender(engine, client, requests, alive, done, concurrency).send(order, moments)

    gc.disable()  # a collection would delay every event that arrives meanwhile
    before = process_time()
    try:
        answers = asyncio.run(send_all())
    finally:
        gc.enable()
    return Load(tuple(answers), process_time() - before)


def counters_of(engine: Engine, client: Client) -> Counts | None:
    """The server's own counters now; None where it has none, or does not answer."""
    try:
        return asyncio.run(engine.counters(client))
    except ServerError:
        return None


def version_of(engine: Engine, client: Client) -> str:
    """The version of a server that runs; raises as `Engine.served_version`."""
    return asyncio.run(engine.served_version(client))


def model_of(client: Client) -> str:
    """What a server that runs calls its model; raises as `Client.models`."""
    return asyncio.run(client.models())[0]


class _Sender:
    """The loop over one list of requests."""

    def __init__(
        self,
        engine: Engine,
        client: Client,
        requests: Sequence[CompletionRequest],
        alive: Callable[[], bool],
        done: Callable[[], None],
        concurrency: int,
    ) -> None:
        self._engine, self._client, self._requests = engine, client, requests
        self._alive, self._done, self._concurrency = alive, done, concurrency
        self._answers: dict[int, Answer] = {}
        self._failed_in_a_row = 0
        self._given_up: str | None = None

    async def send(self, order: Sequence[int], moments: Sequence[float] | None) -> list[Answer]:
        """An answer for every entry of the order."""
        entries = iter(enumerate(order))
        if moments is None:
            await asyncio.gather(*(self._work(entries) for _ in range(min(self._concurrency, len(order)))))
        else:
            await self._open_loop(order, moments)
        now = perf_counter()
        return [
            self._answers.get(place) or Answer(index, now, now, None, f"not sent: {self._given_up}")
            for place, index in enumerate(order)
        ]

    async def _work(self, entries: Iterator[tuple[int, int]]) -> None:
        for place, index in entries:
            if self._given_up is not None:
                return
            await self._one(place, index)

    async def _open_loop(self, order: Sequence[int], moments: Sequence[float]) -> None:
        room = asyncio.Semaphore(self._concurrency)
        began = perf_counter()

        async def one(place: int, index: int) -> None:
            try:
                await self._one(place, index)
            finally:
                room.release()

        async with asyncio.TaskGroup() as tasks:
            for place, (index, moment) in enumerate(zip(order, moments, strict=True)):
                await asyncio.sleep(max(0.0, began + moment - perf_counter()))
                await room.acquire()
                if self._given_up is not None:
                    return
                tasks.create_task(one(place, index))

    async def _one(self, place: int, index: int) -> None:
        sent = perf_counter()
        try:
            completion = await self._engine.complete(self._client, self._requests[index])
        except ServerError as error:
            self._answers[place] = Answer(index, sent, perf_counter(), None, error.reason)
            self._failed_in_a_row += 1
            if not self._alive():
                self._given_up = "the server has ended"
            elif self._failed_in_a_row >= MAX_FAILED_IN_A_ROW + self._concurrency - 1:
                self._given_up = f"{self._failed_in_a_row} requests in a row failed"
        else:
            ended = completion.arrivals[-1][0]
            self._answers[place] = Answer(index, completion.began, ended, completion)
            self._failed_in_a_row = 0
        self._done()
