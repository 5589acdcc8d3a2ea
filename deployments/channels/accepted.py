"""One connection from who has dialled: hello first, then frames both ways, and its end."""

import asyncio
import logging
import socket
from abc import ABC, abstractmethod
from typing import Generic, TypeVar, cast

from deployments.channels.dialled import MAX_UNSENT_BYTES
from deployments.channels.door import may_enter
from deployments.channels.framing import (
    MAX_FRAME_BYTES,
    MAX_HELLO_BYTES,
    FrameReader,
    WireError,
    frame,
)
from deployments.channels.greeting import HELLO_TIMEOUT_S, Hello, checked_hello

logger = logging.getLogger("ray.serve")

Message = TypeVar("Message")


class AcceptedChannel(asyncio.Protocol, ABC, Generic[Hello, Message]):
    """The first frame is small, in time and knows the secret. What the others say, its kinds know.
    For one event loop."""

    def __init__(self, name: str, kind: type[Hello], secret: bytes, version: int) -> None:
        """`name` is the word for such a channel; its hello is of this `kind`, and knows `secret`
        and `version`."""
        self._name = name
        self._kind = kind
        self._secret = secret
        self._version = version
        self._reader = FrameReader(MAX_HELLO_BYTES)
        self._transport: asyncio.Transport | None = None
        self._hello: Hello | None = None
        self._is_local = False
        self._deadline = asyncio.get_running_loop().call_later(HELLO_TIMEOUT_S, self.close)

    @abstractmethod
    def _decode(self, payload: bytes) -> Message | Hello:
        """Raises WireError."""

    @abstractmethod
    def _enter(self) -> None:
        """It has said hello."""

    @abstractmethod
    def _hear(self, message: Message) -> None:
        """Take what comes after the hello. Raises WireError."""

    @abstractmethod
    def _leave(self) -> None:
        """The connection of one who had said hello is gone."""

    @property
    def hello(self) -> Hello:
        assert self._hello is not None, "nothing is told before a hello"
        return self._hello

    @property
    def is_local(self) -> bool:
        """Whether the peer is on this node."""
        return self._is_local

    def close(self) -> None:
        """Drop the connection with what it has not sent."""
        if self._transport is not None:
            self._transport.abort()

    def _send(self, payload: bytes) -> None:
        """A frame; nothing once the connection is gone."""
        if self._transport is None:
            return
        if self._transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            logger.warning("%s closed: more than %d bytes unread", self._name, MAX_UNSENT_BYTES)
            self.close()
            return
        self._transport.write(frame(payload))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        connection = transport.get_extra_info("socket")
        self._is_local = connection.family == socket.AF_UNIX
        if not may_enter(connection):
            self.close()

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._reader.feed(data):
                self._take(self._decode(payload))
        except WireError as error:
            logger.warning("%s refused: %s", self._name, error)
            self.close()

    def _take(self, message: Message | Hello) -> None:
        if self._hello is None:
            self._hello = checked_hello(message, self._kind, self._secret, self._version)
            self._deadline.cancel()
            self._reader.max_frame_bytes = MAX_FRAME_BYTES
            self._enter()
        elif isinstance(message, self._kind):
            raise WireError("a second hello")
        else:
            self._hear(cast(Message, message))

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._deadline.cancel()
        if self._hello is not None:
            self._leave()
