"""Server-sent events: a stream of chunks that ends as soon as nobody listens."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from rtp_serve.api.errors import ClientDisconnected

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


def event(body: Mapping[str, Any]) -> bytes:
    """One event; the JSON text has no line break, so one `data:` line holds it."""
    return b"data: " + _encode(body) + b"\n\n"


async def events_of(
    chunks: AsyncGenerator[Mapping[str, Any], None],
) -> AsyncGenerator[bytes, None]:
    """An event a chunk, and that it is done. Closes `chunks`, whatever happens."""
    async with aclosing(chunks):
        async for chunk in chunks:
            yield event(chunk)
    yield DONE


class EventStream(Response):
    """Sends events as they come. Owns the generator and closes it, whatever happens.

    The status line waits for the first event, so an error before it gets a status of its own.
    Nothing is buffered here: while the client does not read, no event is asked for, and a client
    that takes nothing for `stall_timeout_s` seconds (at most twice that) is given up.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], stall_timeout_s: float) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._stall_timeout_s = stall_timeout_s
        self._num_sent = 0
        self._is_sending = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_gone(self._write(send), disconnect(receive), self._stall())

    async def _write(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            async for each in events:
                if not self._num_sent:
                    await self._send(send, self._start())
                await self._send(send, _part(each, more_body=True))
            if not self._num_sent:
                await self._send(send, self._start())
            await self._send(send, _part(b"", more_body=False))

    async def _send(self, send: Send, message: Message) -> None:
        self._is_sending = True
        try:
            await send(message)
        except OSError as error:
            raise ClientDisconnected from error
        self._is_sending = False
        self._num_sent += 1

    async def _stall(self) -> None:
        """Returns once a single message has been on its way for a whole period."""
        last: int | None = None
        while True:
            await asyncio.sleep(self._stall_timeout_s)
            now = self._num_sent if self._is_sending else None
            if now is not None and now == last:
                return
            last = now

    def _start(self) -> Message:
        return {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }


def _part(body: bytes, more_body: bool) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more_body}


async def disconnect(receive: Receive) -> None:
    """Returns when the client has left. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(work: Coroutine[Any, Any, T], *ends: Coroutine[Any, Any, None]) -> T:
    """Run `work`, or cancel it and raise ClientDisconnected as soon as one of `ends` returns.

    Whatever `work` held is released when this returns or raises.
    """
    worker = asyncio.ensure_future(work)
    watchers = [asyncio.ensure_future(end) for end in ends]
    try:
        await asyncio.wait((worker, *watchers), return_when=asyncio.FIRST_COMPLETED)
        if not worker.done():
            raise ClientDisconnected
        return worker.result()
    finally:
        for task in (worker, *watchers):
            task.cancel()
        await asyncio.gather(worker, *watchers, return_exceptions=True)
