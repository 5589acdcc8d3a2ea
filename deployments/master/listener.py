"""The Master's side of the channels: who asks connects here, and its questions are answered in the
order in which they come.

Belongs to one event loop, as does the service: a call is over in less than a millisecond.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import cast

from deployments.channels.dialled import MAX_UNSENT_BYTES
from deployments.channels.door import Door, may_enter
from deployments.channels.framing import (
    MAX_FRAME_BYTES,
    MAX_HELLO_BYTES,
    FrameReader,
    WireError,
    frame,
)
from deployments.channels.greeting import HELLO_TIMEOUT_S, checked_hello
from deployments.master.channel_wire import (
    VERSION,
    Answer,
    FromAsker,
    Hello,
    Question,
    Refusal,
    decode_from_asker,
    encode_frame,
)
from deployments.master.service import MasterService
from rtp_serve.errors import RtpServeError

logger = logging.getLogger("rtp_serve.master")


class MasterListener:
    """The channels to one Master."""

    def __init__(self, door: Door, service: MasterService, on_question: Callable[[], None]) -> None:
        """`on_question` is called before each."""
        self.door = door
        self._service = service
        self._on_question = on_question
        self._channels: set[InboundChannel] = set()

    async def start(self) -> None:
        await self.door.open(lambda: InboundChannel(self))

    def joined(self, channel: "InboundChannel") -> None:
        self._channels.add(channel)

    def left(self, channel: "InboundChannel") -> None:
        self._channels.discard(channel)

    def answer(self, question: Question) -> Answer | Refusal | None:
        """None if nobody waits for it. Raises WireError for data that the method does not know."""
        self._on_question()
        try:
            data = self._called(question)
        except RtpServeError as error:
            logger.warning("%s: %s", question.method, error)
            return None if question.number is None else Refusal(question.number, str(error))
        return None if question.number is None else Answer(question.number, data)

    def _called(self, question: Question) -> bytes:
        service, data = self._service, question.data
        match question.method:
            case "schedule":
                return service.schedule(data)
            case "report":
                return service.report(data)
            case "snapshot":
                return service.snapshot(data)
            case "figures":
                return service.figures()
            case "ended":
                service.ended(data)
                return b""

    def close(self) -> None:
        """Drop the channels: who asks finds that the Master is gone."""
        self.door.close()
        for channel in list(self._channels):
            channel.close()


class InboundChannel(asyncio.Protocol):
    """One connection. The first frame is small, in time and knows the secret."""

    def __init__(self, listener: MasterListener) -> None:
        self._listener = listener
        self._reader = FrameReader(MAX_HELLO_BYTES)
        self._transport: asyncio.Transport | None = None
        self._has_greeted = False
        self._deadline = asyncio.get_running_loop().call_later(HELLO_TIMEOUT_S, self.close)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._listener.joined(self)
        if not may_enter(transport.get_extra_info("socket")):
            self.close()

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._reader.feed(data):
                self._hear(decode_from_asker(payload))
        except WireError as error:
            logger.warning("a channel to the Master was refused: %s", error)
            self.close()

    def _hear(self, message: FromAsker) -> None:
        if not self._has_greeted:
            self._greet(message)
        elif isinstance(message, Question):
            self._answer(message)
        else:
            raise WireError("a second hello")

    def _greet(self, message: FromAsker) -> None:
        checked_hello(message, Hello, self._listener.door.secret, VERSION)
        self._has_greeted = True
        self._deadline.cancel()
        self._reader.max_frame_bytes = MAX_FRAME_BYTES

    def _answer(self, question: Question) -> None:
        answer = self._listener.answer(question)
        if answer is None or self._transport is None:
            return
        if self._transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            raise WireError(f"more than {MAX_UNSENT_BYTES} bytes of answers are unread")
        self._transport.write(frame(encode_frame(answer)))

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._deadline.cancel()
        self._listener.left(self)
