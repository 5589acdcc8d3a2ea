"""The replica's side of the channels: dial an ingress once, then send it a frame a step.

Everything runs on the replica's event loop except `TokenChannel.deliver`, which the engine's thread
calls and which only hands its deltas over, so encoding overlaps the next step's kernels. An ingress
that does not drain its socket loses the channel, and its streams are aborted: memory is bounded.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from deployments.token_stream.framing import FrameReader, frame
from deployments.token_stream.sockets import is_same_user, tune
from deployments.token_stream.streams import ChannelLost, StreamTally
from deployments.token_stream.wire import (
    Call,
    ChannelAddress,
    Deltas,
    FromReplica,
    Hello,
    Opened,
    StreamKey,
    WireError,
    decode_from_ingress,
    encode,
    pack_delta,
)
from rtp_serve.engine.request import SequenceDelta

logger = logging.getLogger("ray.serve")

CONNECT_TIMEOUT_S = 5.0
MAX_UNSENT_BYTES = 16 << 20


class TcpNeeded(Exception):
    """The ingress is on another node and gave no TCP address."""


class TokenDialer:
    """The channels of one replica, one per ingress process."""

    def __init__(
        self, node_id: str, replica: str, max_unsent_bytes: int = MAX_UNSENT_BYTES
    ) -> None:
        self._node_id = node_id
        self._replica = replica
        self._max_unsent_bytes = max_unsent_bytes
        self._dials: dict[str, asyncio.Task[TokenChannel]] = {}

    async def connect(self, address: ChannelAddress) -> "TokenChannel":
        """The channel to that ingress, dialled if need be.

        Raises TcpNeeded, or OSError (TimeoutError too) when the ingress cannot be reached.
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

    async def _dial(self, address: ChannelAddress) -> "TokenChannel":
        loop = asyncio.get_running_loop()

        def make_channel() -> TokenChannel:
            return TokenChannel(self._max_unsent_bytes, lambda: self._forget(address))

        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            connection = await self._open_socket(address)
            if connection.family == socket.AF_UNIX:
                _, channel = await loop.create_unix_connection(make_channel, sock=connection)
            else:
                _, channel = await loop.create_connection(make_channel, sock=connection)
        channel.send(Hello(address.secret, self._replica))
        return channel

    async def _open_socket(self, address: ChannelAddress) -> socket.socket:
        loop = asyncio.get_running_loop()
        destination: str | tuple[str, int] = "\0" + address.unix_name
        family = socket.AF_UNIX
        if address.node_id != self._node_id:
            assert address.tcp_host is not None, "a call without TCP address was not turned back"
            destination = (address.tcp_host, address.tcp_port)
            family = socket.AF_INET6 if ":" in address.tcp_host else socket.AF_INET
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            await loop.sock_connect(connection, destination)
            if connection.family == socket.AF_UNIX and not is_same_user(connection):
                raise ConnectionRefusedError("the token socket belongs to another user")
            tune(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _forget(self, address: ChannelAddress) -> None:
        self._dials.pop(address.unix_name, None)

    def close(self) -> None:
        """Close every channel; their streams end with ChannelLost."""
        for dial in list(self._dials.values()):
            if dial.done() and not dial.cancelled() and dial.exception() is None:
                dial.result().close("the replica is shutting down")
            dial.cancel()


class TokenChannel(asyncio.Protocol):
    """One connection to an ingress; the DeltaSink of all its requests here."""

    def __init__(self, max_unsent_bytes: int, on_lost: Callable[[], None]) -> None:
        self._max_unsent_bytes = max_unsent_bytes
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._tallies: dict[str, StreamTally] = {}

    def open(self, call: Call) -> StreamTally:
        """Tell the ingress that the engine has taken a stream, and count its deltas from now on."""
        tally = StreamTally(call.key, call.request.indices)
        self._tallies[call.request.request_id] = tally
        if self._transport is None:
            tally.fail(ChannelLost("the ingress is gone"))
        else:
            self.send(Opened(call.key))
        return tally

    def forget(self, request_id: str) -> None:
        """Send nothing more of this request."""
        self._tallies.pop(request_id, None)

    def deliver(self, deltas: list[SequenceDelta]) -> None:
        """Take a step's deltas. Called on the engine's thread."""
        # RuntimeError: the loop closed with the replica, nobody is left to hear.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._send_deltas, deltas)

    def _send_deltas(self, deltas: list[SequenceDelta]) -> None:
        items = []
        for delta in deltas:
            tally = self._tallies.get(delta.request_id)
            if tally is not None:
                items.append(pack_delta(tally.key, delta))
                tally.count(delta)
        if items:
            self.send(Deltas(tuple(items)))

    def send(self, message: FromReplica) -> None:
        if self._transport is None:
            return
        if self._transport.get_write_buffer_size() > self._max_unsent_bytes:
            self.close(f"the ingress left more than {self._max_unsent_bytes} bytes unread")
            return
        self._transport.write(frame(encode(message)))

    def close(self, reason: str) -> None:
        """Drop the connection with what it has not sent; its streams end with ChannelLost."""
        if self._transport is not None:
            logger.info("token channel closed: %s", reason)
            self._transport.abort()
            self._lose(reason)

    def _lose(self, reason: str) -> None:
        self._transport = None
        self._on_lost()
        for tally in self._tallies.values():
            tally.fail(ChannelLost(reason))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._reader.feed(data):
                self._abort(decode_from_ingress(payload).key)
        except WireError as error:
            self.close(f"bad frame from the ingress: {error}")

    def _abort(self, key: StreamKey) -> None:
        for tally in self._tallies.values():
            if tally.key == key:
                tally.end()
                return

    def connection_lost(self, error: Exception | None) -> None:
        if self._transport is not None:
            self._lose("the ingress is gone")
