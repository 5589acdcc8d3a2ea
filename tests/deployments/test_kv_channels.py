"""Channels between prefill and decode replicas, both ends in one process."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from deployments.channels.door import Door
from deployments.kv_transfer.inbound import InboundChannel, Keyed, KvListener
from deployments.kv_transfer.outbound import OutboundChannel, kv_dialer
from deployments.kv_transfer.wire import PrefillLoad, Taken
from rtp_serve.disaggregation.protocol import Heartbeat, TransferKey
from tests.unit.disaggregation.memories import MEMORY

NEVER_S = 1000.0
EARLIER, CURRENT = TransferKey("t", 1), TransferKey("t", 2)
LOAD = PrefillLoad(0.0, 0)


class Told:
    """A transfer that wants its second attempt, and an attempt; what either is told."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[tuple[str, object]] = asyncio.Queue()

    def wants(self, key: TransferKey) -> bool:
        return key == CURRENT

    def tell(self, channel: InboundChannel, message: Keyed) -> None:
        self.events.put_nowait(("told", message))

    def beat(self, key: TransferKey | None = None) -> None:
        self.events.put_nowait(("beat", key))

    def lose(self, key: TransferKey | None = None) -> None:
        self.events.put_nowait(("lost", key))

    def received(self, key: TransferKey) -> None:
        self.events.put_nowait(("received", key))

    def aborted(self, key: TransferKey) -> None:
        self.events.put_nowait(("aborted", key))


class Sides:
    """A decode replica that two processes of one prefill replica can speak to."""

    def __init__(self, listener: KvListener, left: "asyncio.Queue[str]") -> None:
        self.listener = listener
        self.left = left
        self.decode, self.prefill = Told(), Told()

    async def channel(self) -> OutboundChannel:
        dialer = kv_dialer("node", "p", MEMORY, NEVER_S)
        channel = await dialer.connect(self.listener.door.address)
        for key in (EARLIER, CURRENT):
            channel.speak(key, self.prefill)
        return channel


@asynccontextmanager
async def sides() -> AsyncIterator[Sides]:
    left: asyncio.Queue[str] = asyncio.Queue()
    listener = KvListener(Door("rtp-serve-test", "node", "127.0.0.1"), NEVER_S, left.put_nowait)
    await listener.start()
    try:
        yield Sides(listener, left)
    finally:
        listener.close()


def in_time(scenario: Callable[[Sides], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(10), sides() as both:
            await scenario(both)

    asyncio.run(run())


def test_who_speaks_of_a_transfer_that_is_over_is_told_so():
    async def scenario(both: Sides) -> None:
        (await both.channel()).send(Taken(CURRENT, LOAD))
        assert await both.prefill.events.get() == ("aborted", CURRENT)

    in_time(scenario)


def test_an_earlier_attempts_peer_is_told_so_and_keeps_nothing_alive():
    async def scenario(both: Sides) -> None:
        both.listener.listen("t", both.decode)
        late = await both.channel()
        late.send(Taken(EARLIER, LOAD))
        assert await both.prefill.events.get() == ("aborted", EARLIER)
        late.send(Heartbeat())
        late.send(Taken(CURRENT, LOAD))
        late.send(Heartbeat())
        assert await both.decode.events.get() == ("told", Taken(CURRENT, LOAD))
        assert await both.decode.events.get() == ("beat", CURRENT)

    in_time(scenario)


def test_a_replica_has_left_when_its_last_channel_is_closed():
    async def scenario(both: Sides) -> None:
        both.listener.listen("t", both.decode)
        first, second = await both.channel(), await both.channel()
        for channel in (first, second):
            channel.send(Taken(CURRENT, LOAD))
            await both.decode.events.get()
        first.close("cut")
        assert await both.decode.events.get() == ("lost", CURRENT)
        assert both.left.empty()
        second.close("cut")
        assert await both.left.get() == "p"

    in_time(scenario)
