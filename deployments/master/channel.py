"""The channel of who asks the Master: questions out, answers in, several at a time."""

import asyncio
from collections.abc import Callable
from itertools import count

from deployments.channels.address import ChannelAddress
from deployments.channels.dialer import Dialer
from deployments.channels.dialled import DialledChannel
from deployments.master.channel_wire import (
    Answer,
    Hello,
    Method,
    Question,
    decode_from_master,
    encode_frame,
)


class MasterSilent(Exception):
    """The Master did not answer in time, or is not there."""


def master_dialer(node_id: str) -> Dialer["MasterChannel"]:
    """The channel of one process to its Master."""
    return Dialer(node_id, MasterChannel)


class MasterChannel(DialledChannel):
    """One connection. With its end all that is not answered has failed."""

    def __init__(self, on_lost: Callable[[], None]) -> None:
        super().__init__("Master", on_lost)
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[bytes]] = {}

    def greet(self, address: ChannelAddress) -> None:
        self._send(encode_frame(Hello(address.secret)))

    async def ask(self, method: Method, data: bytes) -> bytes:
        """What the method returns. Raises MasterSilent."""
        if not self.is_open:
            raise MasterSilent("it is gone")
        number = next(self._numbers)
        answered = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(encode_frame(Question(number, method, data)))
            return await answered
        finally:
            self._waiting.pop(number, None)

    def tell(self, method: Method, data: bytes) -> None:
        """Without waiting, and without knowing whether it is heard."""
        self._send(encode_frame(Question(None, method, data)))

    def _hear(self, payload: bytes) -> None:
        message = decode_from_master(payload)
        answered = self._waiting.pop(message.number, None)
        if answered is None or answered.done():
            return  # late: nobody waits for it any more
        if isinstance(message, Answer):
            answered.set_result(message.data)
        else:
            answered.set_exception(MasterSilent(message.reason))

    def _fail(self, reason: str) -> None:
        for answered in self._waiting.values():
            if not answered.done():
                answered.set_exception(MasterSilent(reason))
