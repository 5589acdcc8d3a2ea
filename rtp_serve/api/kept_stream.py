"""One stream that outlives its client's connection: its events, numbered and kept for a while.

    chunks ─► one task ─► events 1, 2, 3 … ─► any client, from any number on that is kept

The task goes on while clients come and go. When nobody has read for a grace period it is cancelled,
and the engine's work with it.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from rtp_serve.api.events import DONE, event
from rtp_serve.config.api import KeptStreamsConfig
from rtp_serve.errors import InvalidRequest, RequestTimeout, StreamEventsGone, StreamNotFound

logger = logging.getLogger(__name__)

# What Python adds to the bytes of an event.
_EVENT_OVERHEAD_BYTES = 48


class KeptStream:
    """Belongs to one event loop, in which its task runs from the beginning."""

    def __init__(
        self,
        chunks: AsyncGenerator[Mapping[str, Any], None],
        config: KeptStreamsConfig,
        timeout_s: float,
        on_over: Callable[["KeptStream"], None],
    ) -> None:
        """`on_over` is called when it is over, after `timeout_s` at the latest."""
        self._chunks = chunks
        self._config = config
        self._timeout_s = timeout_s
        self._on_over = on_over
        self._events: deque[bytes] = deque()
        self._num_bytes = 0
        self._last = 0
        self._news = asyncio.Event()
        self._num_readers = 0
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._over)
        self._grace: asyncio.TimerHandle | None = None
        self._start_grace()

    @property
    def is_over(self) -> bool:
        return self._task.done()

    @property
    def was_ended(self) -> bool:
        """Whether somebody or the grace period ended it, and not its own last event or error."""
        return self._task.cancelled()

    @property
    def is_empty(self) -> bool:
        """Whether there has never been an event."""
        return self._last == 0

    def end(self) -> None:
        """Have no more events made."""
        self._task.cancel()

    async def read(self, after: int) -> AsyncGenerator[bytes, None]:
        """The events that follow number `after`, until the last one.

        Raises InvalidRequest for a number that no event has had yet, StreamEventsGone when the next
        one is not kept any more, and what ended the stream early.
        """
        if not 0 <= after <= self._last:
            raise InvalidRequest(
                f"last-event-id must be from 0 to {self._last}, got {after}", "last-event-id"
            )
        self._num_readers += 1
        self._stop_grace()
        try:
            while True:
                while after < self._last:
                    after += 1
                    yield b"id: %d\n%b" % (after, self._event(after))
                if self._task.done():
                    self._raise_what_ended_it()
                    return
                await self._news.wait()
        finally:
            self._num_readers -= 1
            self._start_grace()

    def _event(self, number: int) -> bytes:
        first = self._last - len(self._events) + 1
        if number < first:
            raise StreamEventsGone(
                f"the events before number {first} are not kept any more "
                f"(api.streams.max_bytes is {self._config.max_bytes})"
            )
        return self._events[number - first]

    def _raise_what_ended_it(self) -> None:
        if self._task.cancelled():
            raise StreamNotFound("the stream was ended before its end")
        error = self._task.exception()
        if error is not None:
            raise error

    async def _run(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_s) as deadline, aclosing(self._chunks):
                async for chunk in self._chunks:
                    self._append(event(chunk))
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise RequestTimeout(
                f"the stream took longer than {self._timeout_s:g} s and was aborted"
            ) from error
        self._append(DONE)

    def _append(self, data: bytes) -> None:
        self._events.append(data)
        self._num_bytes += len(data) + _EVENT_OVERHEAD_BYTES
        self._last += 1
        while self._num_bytes > self._config.max_bytes and len(self._events) > 1:
            self._num_bytes -= len(self._events.popleft()) + _EVENT_OVERHEAD_BYTES
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _over(self, task: asyncio.Task[None]) -> None:
        self._stop_grace()
        if not task.cancelled() and task.exception() is not None:
            logger.info("a kept stream failed: %s", type(task.exception()).__name__)
        self._wake()
        self._on_over(self)

    def _start_grace(self) -> None:
        if not self._num_readers and not self._task.done():
            loop = asyncio.get_running_loop()
            self._grace = loop.call_later(self._config.grace_s, self._task.cancel)

    def _stop_grace(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
