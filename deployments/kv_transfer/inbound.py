"""The decode replica's side of the channels: prefill replicas connect, and what they tell finds its
transfer."""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from deployments.channels.accepted import AcceptedChannel
from deployments.channels.door import Door
from deployments.kv_transfer.wire import (
    VERSION,
    FirstToken,
    FromDecode,
    FromPrefill,
    Hello,
    Taken,
    decode_from_prefill,
    encode,
)
from rtp_serve.disaggregation.protocol import (
    Abort,
    Accepted,
    Failed,
    Heartbeat,
    Ready,
    TransferKey,
)

logger = logging.getLogger("ray.serve")

Keyed = Taken | Accepted | Ready | FirstToken | Failed


class Listening(Protocol):
    """A transfer that prefill replicas speak to."""

    def wants(self, key: TransferKey) -> bool:
        """Whether this attempt is not over."""
        ...

    def tell(self, channel: "InboundChannel", message: Keyed) -> None:
        """Take one frame of it."""
        ...

    def beat(self, key: TransferKey) -> None:
        """The peer of this attempt lives."""
        ...

    def lose(self, key: TransferKey) -> None:
        """Its peer's channel is closed; it was of this attempt."""
        ...


class KvListener:
    """The channels to one decode replica, and its transfers; for one event loop."""

    def __init__(
        self, door: Door, heartbeat_s: float, on_left: Callable[[str], None] = lambda _: None
    ) -> None:
        """`on_left` is told the names of prefill replicas that have no channel any more."""
        self.door = door
        self._on_left = on_left
        self._heartbeat_s = heartbeat_s
        self._transfers: dict[str, Listening] = {}
        self._channels: set[InboundChannel] = set()
        self._beating: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.door.open(lambda: InboundChannel(self))
        self._beating = asyncio.create_task(self._beat())

    def listen(self, transfer: str, listening: Listening) -> None:
        """Give it all frames of this transfer."""
        self._transfers[transfer] = listening

    def forget(self, transfer: str) -> None:
        """Frames of it are late from now on, and dropped."""
        self._transfers.pop(transfer, None)
        for channel in self._channels:
            channel.forget(transfer)

    @property
    def num_transfers(self) -> int:
        return len(self._transfers)

    def transfer(self, name: str) -> Listening | None:
        return self._transfers.get(name)

    def joined(self, channel: "InboundChannel") -> None:
        self._channels.add(channel)

    def left(self, channel: "InboundChannel") -> None:
        self._channels.discard(channel)
        replica = channel.hello.replica
        if all(other.hello.replica != replica for other in self._channels):
            self._on_left(replica)

    async def _beat(self) -> None:
        """Prefill replicas hold blocks for as long as this process lives."""
        while True:
            await asyncio.sleep(self._heartbeat_s)
            for channel in self._channels:
                channel.send(Heartbeat())

    def close(self) -> None:
        """Drop the channels; prefill replicas take their blocks back."""
        if self._beating is not None:
            self._beating.cancel()
        self.door.close()
        for channel in list(self._channels):
            channel.close()


class InboundChannel(AcceptedChannel[Hello, Heartbeat | Keyed]):
    """One connection from a prefill replica."""

    def __init__(self, listener: KvListener) -> None:
        super().__init__("KV channel", Hello, listener.door.secret, VERSION)
        self._listener = listener
        self._current: dict[str, TransferKey] = {}

    def forget(self, transfer: str) -> None:
        self._current.pop(transfer, None)

    def send(self, message: FromDecode) -> None:
        self._send(encode(message))

    def _decode(self, payload: bytes) -> FromPrefill:
        return decode_from_prefill(payload)

    def _enter(self) -> None:
        self._listener.joined(self)

    def _hear(self, message: Heartbeat | Keyed) -> None:
        match message:
            case Heartbeat():
                self._each(lambda transfer, key: transfer.beat(key))
            case _:
                transfer = self._listener.transfer(message.key.transfer)
                if transfer is None or not transfer.wants(message.key):
                    self._refuse(message)
                else:
                    self._current[message.key.transfer] = message.key
                    transfer.tell(self, message)

    def _refuse(self, message: Keyed) -> None:
        """It is late, as from a peer that was stopped, and holds blocks for nobody."""
        self._current.pop(message.key.transfer, None)
        if isinstance(message, Taken | Accepted):
            self.send(Abort(message.key))

    def _each(self, tell: Callable[[Listening, TransferKey], None]) -> None:
        """What this peer has spoken of."""
        for key in list(self._current.values()):
            transfer = self._listener.transfer(key.transfer)
            if transfer is not None:
                tell(transfer, key)

    def _leave(self) -> None:
        self._listener.left(self)
        self._each(lambda transfer, key: transfer.lose(key))
