"""The ingress's side of the channels: replicas connect here and their deltas find their streams.

Belongs to one event loop. A frame for a stream that is gone is late and is dropped.
"""

import logging
from collections.abc import Callable
from itertools import count

from deployments.channels.accepted import AcceptedChannel
from deployments.channels.address import ChannelAddress
from deployments.channels.door import Door
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

    def handle(self, channel: "InboundChannel", message: Opened | Deltas) -> None:
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
                    stream.opened(channel.hello.replica)
                else:
                    channel.abort(key)

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


class InboundChannel(AcceptedChannel[Hello, Opened | Deltas]):
    """One replica's connection."""

    def __init__(self, listener: TokenListener) -> None:
        super().__init__("token channel", Hello, listener.secret, VERSION)
        self._listener = listener

    def abort(self, key: StreamKey) -> None:
        self._send(encode(Abort(key)))

    def _decode(self, payload: bytes) -> FromReplica:
        return decode_from_replica(payload)

    def _enter(self) -> None:
        self._listener.joined(self)

    def _hear(self, message: Opened | Deltas) -> None:
        self._listener.handle(self, message)

    def _leave(self) -> None:
        self._listener.left(self)
