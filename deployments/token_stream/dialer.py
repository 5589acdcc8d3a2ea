"""The replica's side of the channels: dial an ingress once, then send it a frame a step.

Everything runs on the replica's event loop except `TokenChannel.deliver`, which the engine's thread
calls and which only hands its deltas over, so encoding overlaps the next step's kernels. An ingress
that does not drain its socket loses the channel, and its streams are aborted: memory is bounded.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from deployments.channels.address import ChannelAddress
from deployments.channels.dialer import Dialer
from deployments.channels.dialled import MAX_UNSENT_BYTES, DialledChannel
from deployments.token_stream.streams import ChannelLost, StreamTally
from deployments.token_stream.wire import (
    Call,
    Deltas,
    FromReplica,
    Hello,
    Opened,
    decode_from_ingress,
    encode,
    pack_delta,
)
from rtp_serve.engine.request import SequenceDelta


def token_dialer(
    node_id: str, replica: str, max_unsent_bytes: int = MAX_UNSENT_BYTES
) -> Dialer["TokenChannel"]:
    """The channels of one replica, one per ingress process."""
    return Dialer(node_id, partial(TokenChannel, replica, max_unsent_bytes))


class TokenChannel(DialledChannel):
    """One connection to an ingress; the DeltaSink of all its requests here."""

    def __init__(self, replica: str, max_unsent_bytes: int, on_lost: Callable[[], None]) -> None:
        super().__init__("ingress", on_lost, max_unsent_bytes)
        self._replica = replica
        self._loop = asyncio.get_running_loop()
        self._tallies: dict[str, StreamTally] = {}

    def greet(self, address: ChannelAddress) -> None:
        self.send(Hello(address.secret, self._replica))

    def open(self, call: Call) -> StreamTally:
        """Tell the ingress that the engine has taken a stream, and count its deltas from now on."""
        tally = StreamTally(call.key, call.request.indices)
        self._tallies[call.request.request_id] = tally
        if self.is_open:
            self.send(Opened(call.key))
        else:
            tally.fail(ChannelLost("the ingress is gone"))
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
        self._send(encode(message))

    def _hear(self, payload: bytes) -> None:
        key = decode_from_ingress(payload).key
        for tally in self._tallies.values():
            if tally.key == key:
                tally.end()
                return

    def _fail(self, reason: str) -> None:
        for tally in self._tallies.values():
            tally.fail(ChannelLost(reason))
