"""A prefill replica's attempts, with an engine and without channels."""

import asyncio
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.channels.address import ChannelAddress
from deployments.kv_transfer.prefill_side import PrefillSide
from deployments.kv_transfer.wire import FirstToken, PrefillCall, PrefillEnded, unpack_first
from rtp_serve.clock import WallClock
from rtp_serve.disaggregation.protocol import TransferKey
from rtp_serve.disaggregation.transport.slots import Slots, slots_bytes
from rtp_serve.engine.async_engine import AsyncEngine
from rtp_serve.engine.executor import CompletedStep
from rtp_serve.engine.output import SchedulerOutput
from rtp_serve.engine.request import Request, first_token_request
from rtp_serve.errors import ModelChanged
from tests.factories import MemoryWorker, make_core, make_prompt, make_request, predicted_tokens
from tests.unit.disaggregation.memories import MEMORY


class Engine(AsyncEngine):
    """Whose blocks somebody can see."""

    @property
    def memory(self) -> Any:
        return SimpleNamespace(description=MEMORY)


class HeldUp(MemoryWorker):
    """Its first step takes as long as the test wants."""

    def __init__(self) -> None:
        super().__init__(64)
        self.is_computing, self.may_compute = threading.Event(), threading.Event()

    def submit(self, scheduled: SchedulerOutput) -> CompletedStep:
        self.is_computing.set()
        assert self.may_compute.wait(10), "nobody let it compute"
        return super().submit(scheduled)


class Stage:
    """A prefill side, and the decode replica that it speaks to."""

    def __init__(self, worker: MemoryWorker | None = None) -> None:
        self.engine = Engine(make_core(worker=worker), 10)
        self.slots = Slots(memoryview(bytearray(slots_bytes(4))))
        self.said: asyncio.Queue[Any] = asyncio.Queue()
        any_stage: Any = self
        self.side = PrefillSide(self.engine, any_stage, self.slots, 4, WallClock())
        self._attempts: dict[TransferKey, Any] = {}

    async def connect(self, address: ChannelAddress) -> "Stage":
        return self

    def send(self, message: Any) -> None:
        self.said.put_nowait(message)

    def speak(self, key: TransferKey, attempt: Any) -> None:
        self._attempts[key] = attempt

    def forget(self, key: TransferKey) -> None:
        self._attempts.pop(key, None)

    async def run(self, request: Request, name: str) -> PrefillEnded:
        key = TransferKey(name, 1)
        address = ChannelAddress("here", "door", b"x" * 32)
        layout = MEMORY.layout_digest
        return await self.side.run(
            PrefillCall(address, key, first_token_request(request), 0, layout, 60.0, 60.0)
        )

    async def first_token(self) -> int:
        """Of the attempt that is under way, which then ends."""
        while not isinstance(message := await self.said.get(), FirstToken):
            pass
        (token_id,) = unpack_first("r", message).token_ids
        self._attempts[message.key].received(message.key)
        return token_id


def for_weights(content: str) -> Request:
    request = make_request(prompt=make_prompt(100), ignore_eos=True)
    return replace(request, fingerprint=content)


def test_a_prompt_for_other_weights_is_refused_before_anything_is_begun():
    async def scenario() -> None:
        stage = Stage()
        with pytest.raises(ModelChanged, match="content_1"):
            await stage.run(for_weights("content_1"), "a")
        assert stage.said.empty()
        assert stage.slots.num_used == stage.side.num_slots_used == 0
        ended = asyncio.create_task(stage.run(for_weights("content_0"), "b"))
        assert await stage.first_token() == predicted_tokens(for_weights(""), count=1)[0]
        assert (await ended).code is None
        stage.engine.shutdown()

    asyncio.run(scenario())


def test_an_attempt_that_is_under_way_ends_with_its_weights_and_the_next_needs_the_new_ones():
    async def scenario() -> None:
        worker = HeldUp()
        stage = Stage(worker)
        ended = asyncio.create_task(stage.run(for_weights("content_0"), "a"))
        await asyncio.to_thread(worker.is_computing.wait, 10)
        reloading = asyncio.create_task(asyncio.to_thread(stage.engine.load))
        worker.may_compute.set()
        assert (await reloading).fingerprint == "fp_1"
        assert await stage.first_token() == predicted_tokens(for_weights(""), count=1)[0]
        assert (await ended).code is None
        with pytest.raises(ModelChanged, match="content_0"):
            await stage.run(for_weights("content_0"), "b")
        ended = asyncio.create_task(stage.run(for_weights("content_1"), "c"))
        expected = predicted_tokens(for_weights(""), count=1, version=1)
        assert await stage.first_token() == expected[0]
        assert (await ended).code is None
        assert stage.slots.num_used == 0
        stage.engine.shutdown()

    asyncio.run(scenario())
