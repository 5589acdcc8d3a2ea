"""The Master's side of the channels: who asks connects here, and its questions are answered in the
order in which they come.

Belongs to one event loop, as does the service: a call is over in less than a millisecond.
"""

import logging
from collections.abc import Callable

from deployments.channels.accepted import AcceptedChannel
from deployments.channels.door import Door
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


class InboundChannel(AcceptedChannel[Hello, Question]):
    """One connection from who asks."""

    def __init__(self, listener: MasterListener) -> None:
        super().__init__("channel to the Master", Hello, listener.door.secret, VERSION)
        self._listener = listener

    def _decode(self, payload: bytes) -> FromAsker:
        return decode_from_asker(payload)

    def _enter(self) -> None:
        self._listener.joined(self)

    def _hear(self, message: Question) -> None:
        answer = self._listener.answer(message)
        if answer is not None:
            self._send(encode_frame(answer))

    def _leave(self) -> None:
        self._listener.left(self)
