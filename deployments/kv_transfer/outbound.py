"""The prefill replica's side of the channels: it dials the decode replica that asks."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Protocol

from deployments.channels.address import ChannelAddress
from deployments.channels.dialer import Dialer
from deployments.channels.dialled import DialledChannel
from deployments.kv_transfer.wire import FromPrefill, Hello, decode_from_decode, encode
from rtp_serve.disaggregation.protocol import (
    Abort,
    Heartbeat,
    MemoryDescriptor,
    Received,
    TransferKey,
)


class Speaking(Protocol):
    """An attempt that speaks over a channel."""

    def received(self, key: TransferKey) -> None: ...

    def aborted(self, key: TransferKey) -> None: ...

    def beat(self) -> None: ...

    def lose(self) -> None: ...


def kv_dialer(
    node_id: str, replica: str, memory: MemoryDescriptor, heartbeat_s: float
) -> Dialer["OutboundChannel"]:
    """The channels of one prefill replica, one per decode replica."""
    return Dialer(node_id, partial(OutboundChannel, replica, memory, heartbeat_s))


class OutboundChannel(DialledChannel):
    """One connection to a decode replica."""

    def __init__(
        self,
        replica: str,
        memory: MemoryDescriptor,
        heartbeat_s: float,
        on_lost: Callable[[], None],
    ) -> None:
        super().__init__("decode replica", on_lost)
        self._replica = replica
        self._memory = memory
        self._attempts: dict[TransferKey, Speaking] = {}
        self._beating = asyncio.create_task(self._beat(heartbeat_s))

    def greet(self, address: ChannelAddress) -> None:
        self.send(Hello(address.secret, self._replica, self._memory))

    def speak(self, key: TransferKey, attempt: Speaking) -> None:
        """Give it what the decode replica says of this attempt."""
        self._attempts[key] = attempt
        if not self.is_open:
            attempt.lose()

    def forget(self, key: TransferKey) -> None:
        self._attempts.pop(key, None)

    def send(self, message: FromPrefill) -> None:
        self._send(encode(message))

    async def _beat(self, heartbeat_s: float) -> None:
        while True:
            await asyncio.sleep(heartbeat_s)
            self.send(Heartbeat())

    def _hear(self, payload: bytes) -> None:
        match decode_from_decode(payload):
            case Heartbeat():
                for attempt in self._attempts.values():
                    attempt.beat()
            case Received(key=key) if key in self._attempts:
                self._attempts[key].received(key)
            case Abort(key=key) if key in self._attempts:
                self._attempts[key].aborted(key)

    def _fail(self, reason: str) -> None:
        self._beating.cancel()
        for attempt in list(self._attempts.values()):
            attempt.lose()
