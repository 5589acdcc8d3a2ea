"""One connection to a process that was dialled: frames out, frames in, and its end."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import cast

from deployments.channels.address import ChannelAddress
from deployments.channels.framing import FrameReader, WireError, frame

logger = logging.getLogger("ray.serve")

MAX_UNSENT_BYTES = 16 << 20
"""A peer that leaves more unread loses its channel: memory is bounded."""


class DialledChannel(asyncio.Protocol, ABC):
    """What the frames say, its kinds know. For one event loop."""

    def __init__(
        self, peer: str, on_lost: Callable[[], None], max_unsent_bytes: int = MAX_UNSENT_BYTES
    ) -> None:
        """`peer` is the word for who was dialled."""
        self._peer = peer
        self._on_lost = on_lost
        self._max_unsent_bytes = max_unsent_bytes
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None

    @abstractmethod
    def greet(self, address: ChannelAddress) -> None:
        """Say hello: the first frame."""

    @abstractmethod
    def _hear(self, payload: bytes) -> None:
        """Take a frame. Raises WireError."""

    @abstractmethod
    def _fail(self, reason: str) -> None:
        """The connection is gone: whatever went over it has failed."""

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    def close(self, reason: str) -> None:
        """Drop the connection with what it has not sent."""
        if self._transport is not None:
            logger.info("channel to the %s closed: %s", self._peer, reason)
            self._transport.abort()
            self._lose(reason)

    def _send(self, payload: bytes) -> None:
        """A frame; nothing once the connection is gone."""
        if self._transport is None:
            return
        if self._transport.get_write_buffer_size() > self._max_unsent_bytes:
            self.close(f"the {self._peer} left more than {self._max_unsent_bytes} bytes unread")
            return
        self._transport.write(frame(payload))

    def _lose(self, reason: str) -> None:
        self._transport = None
        self._on_lost()
        self._fail(reason)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._reader.feed(data):
                self._hear(payload)
        except WireError as error:
            self.close(f"bad frame from the {self._peer}: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        if self._transport is not None:
            self._lose(f"the {self._peer} is gone")
