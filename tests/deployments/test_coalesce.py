import asyncio
from collections.abc import AsyncGenerator

import pytest

from deployments.coalesce import CoalescingClient
from rtp_serve.engine.client import ServedModel
from rtp_serve.engine.request import FinishReason, Request, SequenceDelta
from rtp_serve.errors import EngineDead
from tests.factories import make_request

MODEL = ServedModel("test", 512, 1000, ())


class Script:
    """An EngineClient that plays deltas; a number is a pause in seconds, an exception is raised."""

    def __init__(self, *items: SequenceDelta | float | Exception) -> None:
        self._items = items
        self.is_closed = False

    async def generate(self, request: Request) -> AsyncGenerator[SequenceDelta, None]:
        try:
            for item in self._items:
                if isinstance(item, SequenceDelta):
                    yield item
                elif isinstance(item, Exception):
                    raise item
                else:
                    await asyncio.sleep(item)
        finally:
            self.is_closed = True

    async def served_model(self) -> ServedModel:
        return MODEL

    async def check_health(self) -> None: ...

    async def metrics_text(self) -> str:
        return ""


def delta(token_id: int, index: int = 0, reason: FinishReason | None = None) -> SequenceDelta:
    return SequenceDelta("r", index, (token_id,), finish_reason=reason)


def collect(script: Script, period_s: float = 10.0) -> list[SequenceDelta]:
    async def read() -> list[SequenceDelta]:
        client = CoalescingClient(script, period_s)
        return [each async for each in client.generate(make_request("r"))]

    return asyncio.run(read())


def test_the_first_delta_passes_alone_and_the_rest_together():
    found = collect(Script(delta(1), delta(2), delta(3), delta(4, reason=FinishReason.STOP)))
    assert [each.token_ids for each in found] == [(1,), (2, 3, 4)]
    assert found[-1].finish_reason is FinishReason.STOP


def test_sequences_are_joined_apart():
    found = collect(Script(delta(1), delta(10, 1), delta(2), delta(11, 1)))
    assert [(each.index, each.token_ids) for each in found] == [
        (0, (1,)),
        (1, (10, 11)),
        (0, (2,)),
    ]


def test_a_period_later_what_has_come_passes_without_waiting_for_more():
    async def scenario() -> None:
        client = CoalescingClient(Script(delta(1), delta(2), delta(3), 60.0), 0.01)
        deltas = client.generate(make_request("r"))
        async with asyncio.timeout(10):
            assert (await anext(deltas)).token_ids == (1,)
            assert (await anext(deltas)).token_ids == (2, 3)
        await deltas.aclose()

    asyncio.run(scenario())


def test_closing_it_closes_what_is_behind_it():
    script = Script(delta(1), 60.0)

    async def scenario() -> None:
        deltas = CoalescingClient(script, 0.01).generate(make_request("r"))
        await anext(deltas)
        await deltas.aclose()

    asyncio.run(scenario())
    assert script.is_closed


def test_an_error_passes_through():
    with pytest.raises(EngineDead):
        collect(Script(delta(1), EngineDead("gone")))


def test_what_was_cached_survives_a_delta_that_does_not_say():
    told = SequenceDelta("r", 0, (2,), num_cached_tokens=48, num_host_tokens=16, num_disk_tokens=16)
    found = collect(Script(delta(1), told, delta(3)))
    assert found[-1].token_ids == (2, 3)
    assert found[-1].cached == (48, 16, 16, 0)
