"""Where an engine's deltas go: into an event loop, or to a thread that waits for the end."""

import asyncio
import threading
from contextlib import suppress
from typing import Protocol

from rtp_serve.engine.request import FinishReason, SequenceDelta
from rtp_serve.errors import EngineDead


class DeltaSink(Protocol):
    """Where a request's deltas go. Several requests may share one sink."""

    def deliver(self, deltas: list[SequenceDelta]) -> None:
        """Called on the engine's thread at most once a step; must return at once."""
        ...


class Completion:
    """A sink for somebody who waits in another thread, and wants no token."""

    def __init__(self) -> None:
        self._is_over = threading.Event()
        self._error: str | None = None

    def deliver(self, deltas: list[SequenceDelta]) -> None:
        for delta in deltas:
            if delta.finish_reason is FinishReason.ERROR:
                self._error = delta.error
            if delta.finish_reason is not None:
                self._is_over.set()

    def wait(self) -> None:
        """Raises EngineDead."""
        self._is_over.wait()
        if self._error is not None:
            raise EngineDead(self._error)


class LoopStream:
    """A sink that brings deltas into an asyncio loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.queue: asyncio.Queue[SequenceDelta] = asyncio.Queue()
        self._loop = loop

    def deliver(self, deltas: list[SequenceDelta]) -> None:
        # A loop that its owner closed raises RuntimeError: nobody is left to hear.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._put, deltas)

    def _put(self, deltas: list[SequenceDelta]) -> None:
        for delta in deltas:
            self.queue.put_nowait(delta)
