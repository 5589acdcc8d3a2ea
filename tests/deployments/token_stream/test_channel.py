"""The two sides over real sockets, without Ray; deltas come from another thread, as an engine's."""

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import uvloop

from deployments.channels.address import ChannelAddress
from deployments.channels.dialer import TcpNeeded
from deployments.channels.framing import frame
from deployments.token_stream.dialer import TokenChannel, token_dialer
from deployments.token_stream.listener import TokenListener
from deployments.token_stream.streams import ChannelLost, TokenStream
from deployments.token_stream.wire import (
    Call,
    Deltas,
    Finished,
    Hello,
    encode,
    pack_delta,
)
from rtp_serve.engine.request import FinishReason, Request, SequenceDelta
from rtp_serve.errors import EngineDead
from tests.factories import make_request

DEADLINE_S = 10.0


class Pair:
    """A listening ingress and a dialling replica."""

    def __init__(self, replica_node: str = "a", max_unsent_bytes: int = 1 << 20) -> None:
        self.listener = TokenListener("a", "127.0.0.1")
        self.dialer = token_dialer(replica_node, "replica", max_unsent_bytes)

    async def __aenter__(self) -> "Pair":
        await self.listener.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.dialer.close()
        await self.listener.close()

    async def open(self, request: Request):
        """(the ingress's stream, the replica's channel, its tally)"""
        stream = self.listener.open_stream(request)
        channel = await self.dialer.connect(self.listener.address)
        return stream, channel, channel.open(Call(self.listener.address, stream.key, request))


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """On both loops: Serve's replicas take uvloop where it is installed."""

    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await scenario()

    for loop_factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(bounded())


def from_engine(channel: TokenChannel, *steps: list[SequenceDelta]) -> None:
    thread = threading.Thread(target=lambda: [channel.deliver(step) for step in steps])
    thread.start()
    thread.join()


def token(request_id: str, token_id: int, reason: FinishReason | None = None) -> SequenceDelta:
    return SequenceDelta(request_id, 0, (token_id,), finish_reason=reason)


async def read_all(stream: TokenStream) -> list[int]:
    return [token_id async for delta in stream for token_id in delta.token_ids]


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_the_record_says_what_was_cached_and_where():
    async def scenario():
        async with Pair() as pair:
            _, channel, tally = await pair.open(make_request("r", n=2))
            first = replace(token("r", 1), num_cached_tokens=48, num_host_tokens=16)
            from_engine(channel, [first, replace(token("r", 2, FinishReason.STOP), index=1)])
            from_engine(channel, [token("r", 3, FinishReason.STOP)])
            assert (await tally.finished).cached == (48, 16, 0, 0)

    run(scenario)


@pytest.mark.parametrize("replica_node", ["a", "b"], ids=["unix", "tcp"])
def test_interleaved_streams_each_get_their_tokens_in_order(replica_node: str):
    async def scenario():
        async with Pair(replica_node) as pair:
            await pair.listener.open_tcp()
            streams, tallies = [], []
            for i in range(3):
                stream, channel, tally = await pair.open(make_request(f"r{i}"))
                streams.append(stream)
                tallies.append(tally)
            steps = [
                [token(f"r{i}", 10 * i + n, FinishReason.LENGTH if n == 4 else None)
                 for i in range(3)]
                for n in range(5)
            ]  # fmt: skip
            from_engine(channel, *steps)
            for i, stream in enumerate(streams):
                assert await read_all(stream) == [10 * i + n for n in range(5)]
            for tally in tallies:
                assert await tally.finished == Finished((FinishReason.LENGTH,), (5,))

    run(scenario)


def test_a_step_is_one_frame_for_all_streams():
    async def scenario():
        async with Pair() as pair:
            writes = []
            for i in range(4):
                _, channel, _ = await pair.open(make_request(f"r{i}"))
            channel._transport = _Recorder(channel._transport, writes)
            from_engine(channel, [token(f"r{i}", i) for i in range(4)])
            await until(lambda: writes)
            assert len(writes) == 1

    run(scenario)


class _Recorder:
    """A transport that notes each write."""

    def __init__(self, transport: Any, writes: list[bytes]) -> None:
        self._transport = transport
        self._writes = writes

    def write(self, data: bytes) -> None:
        self._writes.append(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def test_all_calls_of_an_ingress_share_one_connection():
    async def scenario():
        async with Pair() as pair:
            address = pair.listener.address
            channels = await asyncio.gather(*(pair.dialer.connect(address) for _ in range(8)))
            assert len({id(channel) for channel in channels}) == 1

    run(scenario)


def test_a_replica_of_another_node_asks_for_tcp_first():
    async def scenario():
        async with Pair("b") as pair:
            with pytest.raises(TcpNeeded):
                await pair.dialer.connect(pair.listener.address)
            await pair.listener.open_tcp()
            await pair.dialer.connect(pair.listener.address)

    run(scenario)


def test_calls_that_ask_for_tcp_do_not_disturb_those_that_have_it():
    async def scenario():
        async with Pair("b") as pair:
            without = pair.listener.address
            await pair.listener.open_tcp()
            results = await asyncio.gather(
                pair.dialer.connect(without),
                pair.dialer.connect(pair.listener.address),
                return_exceptions=True,
            )
            assert [type(result) for result in results] == [TcpNeeded, TokenChannel]

    run(scenario)


def test_tcp_takes_a_port_of_the_range_and_says_when_none_is_free():
    async def scenario():
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            listener = TokenListener("a", "127.0.0.1", range(port, port + 1))
            await listener.start()
            with pytest.raises(OSError, match=f"no free port on 127.0.0.1 in {port}"):
                await listener.open_tcp()
            await listener.close()

    run(scenario)


def test_closing_a_stream_early_aborts_it_at_the_replica():
    async def scenario():
        async with Pair() as pair:
            stream, channel, tally = await pair.open(make_request("r"))
            from_engine(channel, [token("r", 1)])
            assert (await anext(stream)).token_ids == (1,)
            assert pair.listener.close_stream(stream)
            assert await tally.finished == Finished((FinishReason.ABORT,), (1,))

    run(scenario)


def test_a_stream_closed_before_it_was_opened_is_aborted_on_arrival():
    async def scenario():
        async with Pair() as pair:
            request = make_request("r")
            stream = pair.listener.open_stream(request)
            assert not pair.listener.close_stream(stream)
            channel = await pair.dialer.connect(pair.listener.address)
            tally = channel.open(Call(pair.listener.address, stream.key, request))
            assert (await tally.finished).reasons == (FinishReason.ABORT,)

    run(scenario)


def test_late_frames_of_a_closed_stream_are_ignored():
    async def scenario():
        async with Pair() as pair:
            gone, channel, _ = await pair.open(make_request("gone"))
            kept, _, _ = await pair.open(make_request("kept"))
            pair.listener.close_stream(gone)
            from_engine(channel, [token("gone", 1), token("kept", 2, FinishReason.STOP)])
            assert await read_all(kept) == [2]

    run(scenario)


def test_a_lost_replica_fails_its_unfinished_streams_after_their_last_tokens():
    async def scenario():
        async with Pair() as pair:
            stream, channel, tally = await pair.open(make_request("r"))
            done, _, _ = await pair.open(make_request("done"))
            from_engine(channel, [token("r", 1), token("done", 2, FinishReason.STOP)])
            assert (await anext(stream)).token_ids == (1,)
            channel.close("killed")
            with pytest.raises(EngineDead):
                await anext(stream)
            assert await read_all(done) == [2]
            with pytest.raises(ChannelLost, match="killed"):
                await tally.finished

    run(scenario)


def test_a_lost_ingress_ends_its_streams_and_the_next_call_dials_again():
    async def scenario():
        async with Pair() as pair:
            _, channel, tally = await pair.open(make_request("r"))
            await until(lambda: pair.listener._inbound)
            for inbound in list(pair.listener._inbound):
                inbound.close()
            with pytest.raises(ChannelLost):
                await tally.finished
            assert await pair.dialer.connect(pair.listener.address) is not channel

    run(scenario)


def test_an_ingress_that_does_not_read_loses_the_channel():
    async def scenario():
        async with Pair(max_unsent_bytes=1 << 16) as pair:
            _, channel, tally = await pair.open(make_request("r"))
            await until(lambda: pair.listener._inbound)
            for inbound in pair.listener._inbound:
                inbound._transport.pause_reading()
            big = SequenceDelta("r", 0, tuple(range(10_000)))
            while not tally.finished.done():
                channel.deliver([big])
                await asyncio.sleep(0)
            with pytest.raises(ChannelLost, match="unread"):
                await tally.finished

    run(scenario)


async def send_raw(listener: TokenListener, *payloads: bytes) -> None:
    """Be a peer that sends these frames, until the listener hangs up."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect("\0" + listener.address.unix_name)
    reader, writer = await asyncio.open_unix_connection(sock=sock)
    for payload in payloads:
        writer.write(frame(payload))
    with suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize("knows_secret", [False, True])
def test_tokens_are_taken_from_those_alone_who_know_the_secret(knows_secret: bool):
    async def scenario():
        async with Pair() as pair:
            stream = pair.listener.open_stream(make_request("r"))
            secret = pair.listener.secret if knows_secret else b"?" * 32
            delta = pack_delta(stream.key, token("r", 1, FinishReason.STOP))
            hello, deltas = encode(Hello(secret, "x")), encode(Deltas((delta,)))
            # The final junk makes the listener hang up on the honest peer as well.
            await send_raw(pair.listener, hello, deltas, b"\xc1")
            assert stream.is_complete == knows_secret

    run(scenario)


@pytest.mark.parametrize(
    "first", [b"\xc1", encode(Deltas(())), b"x" * 5000], ids=["junk", "no hello", "too large"]
)
def test_a_peer_that_does_not_say_hello_is_cut_off(first: bytes):
    async def scenario():
        async with Pair() as pair:
            await send_raw(pair.listener, first)
            assert not pair.listener._inbound

    run(scenario)


def test_the_unix_socket_is_not_used_across_nodes_even_when_it_would_work():
    async def scenario():
        async with Pair("b") as pair:
            await pair.listener.open_tcp()
            channel = await pair.dialer.connect(pair.listener.address)
            family = channel._transport.get_extra_info("socket").family
            assert family == socket.AF_INET

    run(scenario)


def test_an_unreachable_ingress_is_an_os_error():
    async def scenario():
        dialer = token_dialer("a", "replica")
        with pytest.raises(OSError):  # noqa: PT011  the kernel words it
            await dialer.connect(ChannelAddress("a", "nobody-listens-here", b"s" * 32))

    run(scenario)
