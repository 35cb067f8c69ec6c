"""Sends requests to a server, in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from draftrank.serving.base import Completion, CompletionRequest, Engine
from draftrank.serving.http import Client, ServerError
from draftrank.serving.load import Answer, Load

ATTEMPTS = 3
"""Maximum of requests for one output while the server's figures contradict it: on a busy machine its stream joins steps."""


def in_turn(
    engine: Engine,
    client: Client,
    requests: Sequence[CompletionRequest],
    done: Callable[[], None] = lambda: None,
) -> list[Completion]:
    """Completions of requests, each sent when the one before is complete.

    Args:
        engine: what the server runs.
        client: talks to it.
        requests: what to send.
        done: called behind each.

    Raises:
        ServerError: see `Engine.complete`.
    """

    async def send() -> list[Completion]:
        found = []
        for request in requests:
            completion = await engine.complete(client, request)
            for _ in range(ATTEMPTS - 1):
                if completion.disagreement is None:
                    break
                completion = await engine.complete(client, request)
            found.append(await engine.filled(client, request, completion))
            done()
        return found

    return asyncio.run(send())


def with_whole_outputs(
    engine: Engine, client: Client, requests: Sequence[CompletionRequest], load: Load
) -> Load:
    """The load with the tokens that streams left out, which are asked for after the round."""

    async def whole(answer: Answer) -> Answer:
        if answer.completion is None:
            return answer
        try:
            filled = await engine.filled(client, requests[answer.request], answer.completion)
        except ServerError as error:
            return replace(answer, completion=None, failure=str(error))
        return replace(answer, completion=filled)

    async def all_in_turn() -> list[Answer]:
        return [await whole(answer) for answer in load.answers]

    return replace(load, answers=tuple(asyncio.run(all_in_turn())))
