"""The prefill replica's side of the channels: it dials the decode replica that asks."""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol, cast

from deployments.door import connect
from deployments.kv_transfer.wire import (
    FromPrefill,
    decode_from_decode,
    encode,
)
from deployments.token_stream.dialer import CONNECT_TIMEOUT_S, MAX_UNSENT_BYTES, TcpNeeded
from deployments.token_stream.framing import FrameReader, frame
from deployments.token_stream.wire import ChannelAddress, WireError
from rtp_serve.disaggregation.protocol import (
    Abort,
    Heartbeat,
    Hello,
    MemoryDescriptor,
    Received,
    TransferKey,
)

logger = logging.getLogger("ray.serve")


class Speaking(Protocol):
    """An attempt that speaks over a channel."""

    def received(self, key: TransferKey) -> None: ...

    def aborted(self, key: TransferKey) -> None: ...

    def beat(self) -> None: ...

    def lose(self) -> None: ...


class KvDialer:
    """The channels of one prefill replica, one per decode replica; for one event loop."""

    def __init__(
        self, node_id: str, replica: str, memory: MemoryDescriptor, heartbeat_s: float
    ) -> None:
        self._node_id = node_id
        self._replica = replica
        self._memory = memory
        self._heartbeat_s = heartbeat_s
        self._dials: dict[str, asyncio.Task[OutboundChannel]] = {}

    async def connect(self, address: ChannelAddress) -> "OutboundChannel":
        """The channel to that decode replica, dialled if need be.

        Raises TcpNeeded, or OSError (TimeoutError too) when it cannot be reached.
        """
        dial = self._dials.get(address.unix_name)
        if dial is None:
            if address.node_id != self._node_id and address.tcp_host is None:
                raise TcpNeeded
            dial = asyncio.create_task(self._dial(address))
            self._dials[address.unix_name] = dial
        try:
            # Several calls wait for one dial; a cancelled one must not take it along.
            return await asyncio.shield(dial)
        except OSError:
            if self._dials.get(address.unix_name) is dial:
                self._forget(address)
            raise

    async def _dial(self, address: ChannelAddress) -> "OutboundChannel":
        loop = asyncio.get_running_loop()

        def make_channel() -> OutboundChannel:
            return OutboundChannel(self._heartbeat_s, lambda: self._forget(address))

        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            connection = await connect(address, self._node_id)
            _, channel = await loop.create_connection(make_channel, sock=connection)
        channel.send(Hello(address.secret, self._replica, self._memory))
        return channel

    def _forget(self, address: ChannelAddress) -> None:
        self._dials.pop(address.unix_name, None)

    def close(self) -> None:
        """Close every channel; decode replicas look for other peers."""
        for dial in list(self._dials.values()):
            if dial.done() and not dial.cancelled() and dial.exception() is None:
                dial.result().close("the replica is shutting down")
            dial.cancel()


class OutboundChannel(asyncio.Protocol):
    """One connection to a decode replica."""

    def __init__(self, heartbeat_s: float, on_lost: Callable[[], None]) -> None:
        self._on_lost = on_lost
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._attempts: dict[TransferKey, Speaking] = {}
        self._beating = asyncio.create_task(self._beat(heartbeat_s))

    def speak(self, key: TransferKey, attempt: Speaking) -> None:
        """Give it what the decode replica says of this attempt."""
        self._attempts[key] = attempt
        if self._transport is None:
            attempt.lose()

    def forget(self, key: TransferKey) -> None:
        self._attempts.pop(key, None)

    def send(self, message: FromPrefill) -> None:
        if self._transport is None:
            return
        if self._transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            self.close(f"the decode replica left more than {MAX_UNSENT_BYTES} bytes unread")
            return
        self._transport.write(frame(encode(message)))

    async def _beat(self, heartbeat_s: float) -> None:
        while True:
            await asyncio.sleep(heartbeat_s)
            self.send(Heartbeat())

    def close(self, reason: str) -> None:
        if self._transport is not None:
            logger.info("KV channel closed: %s", reason)
            self._transport.abort()
            self._lose()

    def _lose(self) -> None:
        self._transport = None
        self._beating.cancel()
        self._on_lost()
        for attempt in list(self._attempts.values()):
            attempt.lose()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._reader.feed(data):
                message = decode_from_decode(payload)
                match message:
                    case Heartbeat():
                        for attempt in self._attempts.values():
                            attempt.beat()
                    case Received(key=key) if key in self._attempts:
                        self._attempts[key].received(key)
                    case Abort(key=key) if key in self._attempts:
                        self._attempts[key].aborted(key)
        except WireError as error:
            self.close(f"bad frame from the decode replica: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        if self._transport is not None:
            self._lose()
