"""HTTP to a server, over asyncio's streams: plain JSON, and events with the moment each arrived.

Every wait has a limit, and an answer that ends before it is complete is an error, never a short answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from draftrank.errors import DraftrankError

DONE = "[DONE]"
"""Data of the event after which an OpenAI stream has nothing more to say."""
_MAX_LINE = 1 << 24
"""Bytes of one event or header line."""


class ServerError(DraftrankError):
    """A model server cannot be started, broke off, or answered what it must not."""

    def __init__(self, message: str, *, reason: str | None = None, log_tail: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason or message
        """The message without the log."""
        self.log_tail = log_tail
        """End of the server's log, where it is a process of ours."""


class Client:
    """Talks to one server; each request has a connection of its own."""

    def __init__(
        self,
        port: int,
        *,
        host: str = "127.0.0.1",
        idle_s: float = 300.0,
        tls: bool = False,
        token: str | None = None,
    ) -> None:
        """Nothing is sent yet. After `idle_s` seconds without a byte a request counts as hung; `tls` is for https, and
        `token` is sent as bearer token."""
        self._host, self._port, self._idle_s, self._tls = host, port, idle_s, tls
        self._authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        self.model: str | None = None
        """What requests call the model; None: they do not name it."""

    @classmethod
    def at(cls, address: str, *, token: str | None = None, idle_s: float = 300.0) -> Client:
        """A client of `https://host[:port]` or `http://host[:port]`."""
        parts = urlsplit(address)
        tls = parts.scheme == "https"
        port = parts.port or (443 if tls else 80)
        return cls(port, host=parts.hostname or "", idle_s=idle_s, tls=tls, token=token)

    async def text(self, path: str) -> str:
        """What GET answers.

        Raises:
            ServerError: no answer, half of one, or another status than 200.
        """
        async with aclosing(self._answer("GET", path, None)) as parts:
            return b"".join([part async for part in parts]).decode("utf-8", "replace")

    async def models(self) -> list[str]:
        """What the server calls its models.

        Raises:
            ServerError: it lists none.
        """
        listed = await self.json("/v1/models")
        try:
            first, *others = (str(one["id"]) for one in listed["data"])
        except (KeyError, TypeError, ValueError) as error:
            raise ServerError(
                "/v1/models does not list models: another program listens on its port"
            ) from error
        return [first, *others]

    async def json(self, path: str, body: Any = None) -> Any:
        """The JSON that GET answers, or POST where there is a body; raises as `text`."""
        method = "GET" if body is None else "POST"
        async with aclosing(self._answer(method, path, body)) as parts:
            content = b"".join([part async for part in parts])
        return _parsed(content, f"{method} {path}")

    async def events(self, path: str, body: Any) -> AsyncIterator[tuple[float, Any]]:
        """The server-sent events that POST answers, each as (moment by `perf_counter`, JSON value), without `[DONE]`.

        Raises:
            ServerError: as `text`, or an event is no JSON.
        """
        rest = b""
        async with aclosing(self._answer("POST", path, body)) as parts:
            async for part in parts:
                arrived = perf_counter()
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    name, _, data = line.strip().partition(b":")
                    if name == b"error":  # llama-server
                        raise ServerError(f"POST {path} failed: {data.decode('utf-8', 'replace').strip()}")
                    if name == b"data" and data.strip() != DONE.encode():
                        yield arrived, _parsed(data, f"POST {path}")
        if rest.strip():
            raise ServerError(f"POST {path} broke off in the middle of an event")

    async def _answer(self, method: str, path: str, body: Any) -> AsyncGenerator[bytes, None]:
        """Parts of a complete answer of status 200."""
        what = f"{method} {path}"
        try:
            reader, writer = await asyncio.wait_for(
                asyncio.open_connection(self._host, self._port, limit=_MAX_LINE, ssl=self._tls or None),
                self._idle_s,
            )
        except (OSError, TimeoutError) as error:
            place = f"{self._host}:{self._port}"
            raise ServerError(f"{what}: no server answers at {place}: {error}") from error
        try:
            content = b"" if body is None else json.dumps(body).encode()
            head = f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\nConnection: close\r\n{self._authorization}"
            kind = "" if body is None else "Content-Type: application/json\r\n"
            writer.write(f"{head}{kind}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            await writer.drain()
            status, headers = await self._head(reader, what)
            parts = self._body(reader, headers)
            if status != 200:
                told = b"".join([part async for part in parts]).decode("utf-8", "replace")
                raise ServerError(f"{what}: status {status}: {told[:500].strip()}")
            async for part in parts:
                yield part
        except TimeoutError as error:
            raise ServerError(f"{what}: nothing came for {self._idle_s:g} s") from error
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            raise ServerError(f"{what}: the connection broke off: {error}") from error
        finally:
            writer.close()

    async def _head(self, reader: asyncio.StreamReader, what: str) -> tuple[int, dict[str, str]]:
        first = (await self._line(reader)).split(None, 2)
        if len(first) < 2 or not first[0].startswith(b"HTTP/1.") or not first[1].isdigit():
            raise ServerError(f"{what}: what answers does not speak HTTP")
        headers = {}
        while line := (await self._line(reader)).strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip().lower()
        return int(first[1]), headers

    async def _body(self, reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
        if headers.get("transfer-encoding") == "chunked":
            while size := int((await self._line(reader)).partition(b";")[0], 16):
                yield await self._within(reader.readexactly(size))
                await self._line(reader)
        elif "content-length" in headers:
            yield await self._within(reader.readexactly(int(headers["content-length"])))
        else:  # until the server closes
            while part := await self._within(reader.read(1 << 16)):
                yield part

    async def _line(self, reader: asyncio.StreamReader) -> bytes:
        return await self._within(reader.readuntil(b"\n"))

    async def _within(self, read: Any) -> bytes:
        found: bytes = await asyncio.wait_for(read, self._idle_s)
        return found


def _parsed(content: bytes, what: str) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise ServerError(
            f"{what}: the answer is no JSON: {content[:200].decode('utf-8', 'replace')!r}"
        ) from error
