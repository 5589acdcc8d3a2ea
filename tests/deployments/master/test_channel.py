"""Questions to a Master over its sockets, without Ray."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from deployments.channels.address import SECRET_BYTES
from deployments.channels.door import Door
from deployments.channels.framing import MAX_FRAME_BYTES, frame
from deployments.master.channel import MasterSilent
from deployments.master.channel_wire import Hello, Question, encode_frame
from deployments.master.connection import MasterConnection
from deployments.master.listener import MasterListener
from deployments.master.wire import decode_ruling, decode_standing, encode
from rtp_serve.routing.types import RequestFeatures
from tests.deployments.master.played_master import PlayedMaster, make_report


class PlayedActor:
    """Says where it listens, as the actor's one method does."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self.address = self

    async def remote(self, node_id: str) -> bytes:
        if node_id != "node":
            await self._door.open_tcp()
        return encode_frame(self._door.address)


class Stage:
    """A Master of one worker behind its door, and who asks it from some node."""

    def __init__(self, node_id: str) -> None:
        self.door = Door("test-master", "node", "127.0.0.1")
        service = PlayedMaster().service
        service.report(encode(make_report("a")))
        self.num_asked = 0
        self.listener = MasterListener(self.door, service, self._count)
        actor: Any = PlayedActor(self.door)
        self.connection = MasterConnection(lambda: actor, node_id)

    def _count(self) -> None:
        self.num_asked += 1

    async def schedule(self, name: str) -> str | None:
        request = encode(RequestFeatures(name, 8, (), 0.0))
        answer = await self.connection.ask("schedule", request, timeout_s=5)
        return decode_ruling(answer).worker_id


def play(scenario: Callable[[Stage], Coroutine[Any, Any, None]], node_id: str = "node") -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            stage = Stage(node_id)
            await stage.listener.start()
            await scenario(stage)
            stage.connection.close()
            stage.listener.close()

    asyncio.run(bounded())


@pytest.mark.parametrize("node_id", ["node", "another"])
def test_many_questions_at_once_get_their_own_answers(node_id: str):
    async def scenario(stage: Stage) -> None:
        await stage.connection.find()
        names = [f"r{number}" for number in range(20)]
        assert await asyncio.gather(*map(stage.schedule, names)) == ["a"] * 20
        assert await stage.schedule("r0") is None  # it is in flight
        data = await stage.connection.ask("figures", timeout_s=5)
        assert {each.request_id for each in decode_standing(data).decisions} == set(names)

    play(scenario, node_id)


def test_what_is_told_is_heard_before_what_is_asked_next():
    async def scenario(stage: Stage) -> None:
        await stage.connection.find()
        assert await stage.schedule("r") == "a"
        stage.connection.tell("ended", msgspec.msgpack.encode([["r"]]))
        assert await stage.schedule("r") == "a"

    play(scenario)


def test_the_master_s_end_is_seen_at_once_and_its_successor_is_found():
    async def scenario(stage: Stage) -> None:
        with pytest.raises(MasterSilent, match="not found yet"):
            await stage.schedule("r")
        await stage.connection.find()
        assert await stage.schedule("before") == "a"
        asked = asyncio.create_task(stage.schedule("r"))
        await asyncio.sleep(0)
        stage.listener.close()
        with pytest.raises(MasterSilent, match="gone"):
            await asked
        with pytest.raises(MasterSilent, match="gone"):
            await stage.schedule("r")
        successor = Stage("node")
        await successor.listener.start()
        actor: Any = PlayedActor(successor.door)
        stage.connection._find_or_start = lambda: actor
        await stage.connection.find()
        assert await stage.schedule("r") == "a"
        assert (stage.num_asked, successor.num_asked) == (1, 1)
        successor.listener.close()

    play(scenario)


def test_an_answer_that_comes_too_late_is_not_waited_for_and_hurts_nobody():
    async def scenario(stage: Stage) -> None:
        await stage.connection.find()
        with pytest.raises(MasterSilent, match="no answer within 0 s"):
            await stage.connection.ask("figures", timeout_s=0)
        assert await stage.schedule("r") == "a"

    play(scenario)


def test_bytes_that_the_method_does_not_know_end_the_channel():
    async def scenario(stage: Stage) -> None:
        await stage.connection.find()
        with pytest.raises(MasterSilent, match="gone"):
            await stage.connection.ask("schedule", b"\x80\x04nonsense", timeout_s=5)

    play(scenario)


@pytest.mark.parametrize(
    "sent",
    [
        frame(encode_frame(Hello(bytes(SECRET_BYTES)))),
        frame(encode_frame(Question(1, "figures", b""))),
        (MAX_FRAME_BYTES + 1).to_bytes(4, "little"),
    ],
    ids=["a wrong secret", "no hello", "a frame over the limit"],
)
def test_who_does_not_know_the_secret_is_not_answered(sent: bytes):
    async def scenario(stage: Stage) -> None:
        name = "\0" + stage.door.address.unix_name
        reader, writer = await asyncio.open_unix_connection(name)
        writer.write(sent)
        answer: bytes | None = None
        with suppress(ConnectionResetError):
            answer = await reader.read()
        writer.close()
        assert not answer
        assert stage.num_asked == 0

    play(scenario)
