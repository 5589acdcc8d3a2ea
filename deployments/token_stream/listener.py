"""The ingress's side of the channels: replicas connect here and their deltas find their streams.

Belongs to one event loop. A frame for a stream that is gone is late and is dropped.
"""

import asyncio
import logging
from collections.abc import Callable
from itertools import count
from typing import cast

from deployments.channels.address import ChannelAddress
from deployments.channels.door import Door, may_enter
from deployments.channels.framing import (
    MAX_FRAME_BYTES,
    MAX_HELLO_BYTES,
    FrameReader,
    WireError,
    frame,
)
from deployments.channels.greeting import HELLO_TIMEOUT_S, checked_hello
from deployments.token_stream.streams import ChannelLost, TokenStream
from deployments.token_stream.wire import (
    VERSION,
    Abort,
    Deltas,
    FromReplica,
    Hello,
    Opened,
    StreamKey,
    decode_from_replica,
    encode,
    unpack_delta,
)
from rtp_serve.engine.request import Request
from rtp_serve.errors import EngineDead

logger = logging.getLogger("ray.serve")


class TokenListener:
    """The open streams of one ingress process and the sockets that feed them."""

    def __init__(self, node_id: str, tcp_host: str, tcp_ports: range = range(0)) -> None:
        """`tcp_host` is this node's own address; an empty `tcp_ports` allows any port."""
        self._door = Door("rtp-serve", node_id, tcp_host, tcp_ports)
        self.is_closed = False
        self._stream_ids = count(1)
        self._streams: dict[StreamKey, TokenStream] = {}
        self._channels: dict[StreamKey, InboundChannel] = {}
        self._inbound: set[InboundChannel] = set()

    @property
    def address(self) -> ChannelAddress:
        """What a control call carries now."""
        return self._door.address

    @property
    def secret(self) -> bytes:
        return self._door.secret

    async def start(self) -> None:
        """Listen on the Unix socket."""
        await self._door.open(lambda: InboundChannel(self))

    async def open_tcp(self) -> None:
        """Listen on TCP too, if not done before. Raises OSError when no port is free."""
        await self._door.open_tcp()

    def open_stream(
        self,
        request: Request,
        before: StreamKey | None = None,
        on_opened: Callable[[], None] | None = None,
    ) -> TokenStream:
        """A new stream, or another attempt at the one of the attempt `before`.

        It gets what replicas send under its own key until `close_stream`; `on_opened` is called
        when one has taken it.
        """
        if before is None:
            key = StreamKey(next(self._stream_ids))
        else:
            key = StreamKey(before.stream, before.attempt + 1)
        stream = TokenStream(key, request.request_id, len(request.indices), on_opened)
        self._streams[key] = stream
        return stream

    def close_stream(self, stream: TokenStream) -> bool:
        """Forget a stream, telling its replica to abort what is unfinished.

        Returns whether the replica knows: False when it has not opened the stream yet.
        """
        self._streams.pop(stream.key, None)
        channel = self._channels.pop(stream.key, None)
        if channel is not None and not stream.is_complete:
            channel.abort(stream.key)
        return channel is not None

    def joined(self, channel: "InboundChannel") -> None:
        self._inbound.add(channel)

    def handle(self, channel: "InboundChannel", message: FromReplica) -> None:
        """Take one message of a channel that has said hello."""
        match message:
            case Deltas(items=items):
                for delta in items:
                    receiver = self._streams.get(delta.key)
                    if receiver is not None:
                        receiver.push(unpack_delta(receiver.request_id, delta))
            case Opened(key=key):
                stream = self._streams.get(key)
                if stream is not None:
                    self._channels[key] = channel
                    stream.opened(channel.replica)
                else:
                    channel.abort(key)
            case Hello():
                raise WireError("a second hello")

    def left(self, channel: "InboundChannel") -> None:
        """A replica is gone: its unfinished streams fail."""
        self._inbound.discard(channel)
        lost = [key for key, owner in self._channels.items() if owner is channel]
        for key in lost:
            del self._channels[key]
            self._streams[key].fail(ChannelLost("the replica that ran the request is gone"))

    async def close(self) -> None:
        """Stop listening and drop the channels; every open stream fails."""
        self.is_closed = True
        self._door.close()
        for channel in list(self._inbound):
            channel.close()
        for stream in self._streams.values():
            stream.fail(EngineDead("the ingress is shutting down"))
        self._streams.clear()
        self._channels.clear()


class InboundChannel(asyncio.Protocol):
    """One replica's connection. The first frame is small, in time and knows the secret."""

    def __init__(self, listener: TokenListener) -> None:
        self._listener = listener
        self._reader = FrameReader(MAX_HELLO_BYTES)
        self._transport: asyncio.Transport | None = None
        self._hello: Hello | None = None
        self._deadline = asyncio.get_running_loop().call_later(HELLO_TIMEOUT_S, self.close)

    @property
    def replica(self) -> str:
        assert self._hello is not None, "a message before the hello was let through"
        return self._hello.replica

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        if not may_enter(transport.get_extra_info("socket")):
            self.close()

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._reader.feed(data):
                message = decode_from_replica(payload)
                if self._hello is None:
                    self._greet(message)
                else:
                    self._listener.handle(self, message)
        except WireError as error:
            logger.warning("token channel refused: %s", error)
            self.close()

    def _greet(self, message: FromReplica) -> None:
        self._hello = checked_hello(message, Hello, self._listener.secret, VERSION)
        self._deadline.cancel()
        self._reader.max_frame_bytes = MAX_FRAME_BYTES
        self._listener.joined(self)

    def abort(self, key: StreamKey) -> None:
        if self._transport is not None:
            self._transport.write(frame(encode(Abort(key))))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._deadline.cancel()
        self._listener.left(self)
