"""EngineReplica and ReplicaClient on a cluster; the test's own process plays the ingress."""

import asyncio
import os
import random
import signal
from collections.abc import Iterator
from contextlib import aclosing

import pytest
from ray import serve

from deployments.args import replica_options
from deployments.replicas import EngineReplica
from rtp_serve.clock import WallClock
from rtp_serve.config.serving import AppConfig
from rtp_serve.engine.request import FinishReason
from rtp_serve.errors import EngineDead, InvalidRequest, Overloaded
from tests.deployments.applications import BACK, FRONT, RaySession, RunningApp, running
from tests.deployments.played_ingress import Ingress, as_ingress
from tests.deployments.stub_engine import POISON_TOKEN, SLOW_STEP_S, SLOW_TOKEN, build_stub_engine
from tests.factories import make_prompt, make_request, predicted_tokens

pytestmark = pytest.mark.ray

MAX_QUEUED = 220


@pytest.fixture(scope="module", params=[FRONT, BACK])
def replicas(session: RaySession, request: pytest.FixtureRequest) -> Iterator[RunningApp]:
    """An engine without an ingress: once on this process's node, once on the other."""
    config = AppConfig(
        engine={"scheduler": {"max_queued": MAX_QUEUED}},
        replica={"resources": {request.param: 1}, "health_check_period_s": 0.5},
    )
    deployment = serve.deployment(EngineReplica, **replica_options(config))
    name = f"replica-{request.param}"
    with running(session, name, deployment.bind(config.engine, build_stub_engine)) as app:
        yield app


def test_tcp_is_opened_for_a_replica_of_another_node_alone(replicas: RunningApp):
    async def scenario(ingress: Ingress) -> None:
        request = make_request("r", make_prompt(40), max_tokens=20, ignore_eos=True)
        assert await ingress.generate(request) == predicted_tokens(request)
        is_remote = replicas.name.endswith(BACK)
        assert (ingress.listener.address.tcp_host is not None) == is_remote

    as_ingress(replicas, scenario)


def test_200_requests_of_which_a_third_leaves_midway_answer_as_if_alone(replicas: RunningApp):
    rng = random.Random(1)

    async def scenario(ingress: Ingress) -> None:
        async def one(index: int) -> None:
            prompt = make_prompt(rng.randint(1, 120), index % 50)
            num_tokens = rng.randint(2, 60)
            request = make_request(f"r{index}", prompt, max_tokens=num_tokens, ignore_eos=True)
            stop_after = rng.randint(1, num_tokens) if index % 3 == 0 else None
            expected = predicted_tokens(request)
            assert await ingress.generate(request, stop_after) == expected[:stop_after]

        await asyncio.gather(*(one(index) for index in range(200)))
        await ingress.until_idle()
        assert ingress.client.num_calls == 0

    as_ingress(replicas, scenario)


def test_leaving_before_the_first_token_aborts_too(replicas: RunningApp):
    async def scenario(ingress: Ingress) -> None:
        num_aborted = await ingress.figure("request_success_total", finished_reason="abort")
        request = make_request("r", (SLOW_TOKEN, 5), max_tokens=400, ignore_eos=True)
        reading = asyncio.create_task(ingress.generate(request))
        await ingress.until_opened()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        while num_aborted == await ingress.figure("request_success_total", finished_reason="abort"):
            await asyncio.sleep(0.02)
        await ingress.until_idle()

    as_ingress(replicas, scenario)


def test_a_long_step_keeps_nobody_waiting_who_does_not_need_the_engine(replicas: RunningApp):
    """Health checks, figures and new calls are answered during a step of seconds."""

    async def scenario(ingress: Ingress) -> None:
        clock = WallClock()
        slow = make_request("slow", (SLOW_TOKEN, 5), max_tokens=2, ignore_eos=True)
        generating = asyncio.create_task(ingress.generate(slow))
        await ingress.until_opened()
        num_answers, slowest_s = 0, 0.0
        while not generating.done():
            started_s = clock.monotonic()
            await ingress.client.check_health()
            with pytest.raises(InvalidRequest, match="token ids must be"):
                await ingress.generate(make_request(f"bad{num_answers}", (10**6,)))
            slowest_s = max(slowest_s, clock.monotonic() - started_s)
            num_answers += 1
        assert await generating == predicted_tokens(slow)
        assert num_answers >= 5
        assert slowest_s < SLOW_STEP_S / 2

    as_ingress(replicas, scenario)


def test_more_than_may_wait_are_refused_and_the_others_served(replicas: RunningApp):
    async def scenario(ingress: Ingress) -> None:
        slow = make_request("slow", (SLOW_TOKEN, 5), max_tokens=2, ignore_eos=True)
        first = asyncio.create_task(ingress.generate(slow))
        await ingress.until_opened()
        requests = [make_request(f"r{i}", (5, 6, i), max_tokens=2) for i in range(MAX_QUEUED + 30)]
        answers = await asyncio.gather(
            *(ingress.generate(request) for request in requests), return_exceptions=True
        )
        refused = [answer for answer in answers if isinstance(answer, Overloaded)]
        assert len(refused) == 30
        for request, answer in zip(requests, answers, strict=True):
            assert isinstance(answer, Overloaded) or answer == predicted_tokens(request)
        await first

    as_ingress(replicas, scenario)


def test_a_request_that_fails_engines_ends_with_an_error_and_they_are_replaced(
    replicas: RunningApp,
):
    async def scenario(ingress: Ingress) -> None:
        with pytest.raises(EngineDead):
            await ingress.generate(make_request("r", (POISON_TOKEN, 6), max_tokens=5))
        request = make_request("again", (5, 6), max_tokens=5, ignore_eos=True)
        assert await ingress.generate(request) == predicted_tokens(request)

    as_ingress(replicas, scenario)


def test_a_stream_goes_on_when_its_engine_fails(replicas: RunningApp):
    async def scenario(ingress: Ingress) -> None:
        request = make_request("r", (5, 6), n=2, max_tokens=400, ignore_eos=True)
        outputs: list[list[int]] = [[], []]
        poisoned: asyncio.Task[list[int]] | None = None
        async with aclosing(ingress.client.generate(request)) as deltas:
            async for delta in deltas:
                assert delta.finish_reason in (None, FinishReason.LENGTH)
                outputs[delta.index] += delta.token_ids
                if poisoned is None:
                    poison = make_request("poison", (POISON_TOKEN, 6), max_tokens=5)
                    poisoned = asyncio.create_task(ingress.generate(poison))
        assert outputs == [predicted_tokens(request, index) for index in range(2)]
        assert poisoned is not None
        with pytest.raises(EngineDead):
            await poisoned
        assert await ingress.figure("resumed_streams_total", reason="engine_failed") >= 1

    as_ingress(replicas, scenario)


def test_a_stream_goes_on_when_the_only_replica_is_killed_and_replaced(replicas: RunningApp):
    async def scenario(ingress: Ingress) -> None:
        request = make_request("r", (5, 6), max_tokens=400, ignore_eos=True)
        token_ids: list[int] = []
        async with aclosing(ingress.client.generate(request)) as deltas:
            async for delta in deltas:
                if not token_ids:
                    (victim,) = replicas.pids("EngineReplica")
                    os.kill(victim, signal.SIGKILL)
                token_ids += delta.token_ids
        assert token_ids == predicted_tokens(request)
        assert await ingress.figure("time_to_resume_seconds_count") == 1

    as_ingress(replicas, scenario)


@pytest.fixture
def several(session: RaySession) -> Iterator[RunningApp]:
    """Three replicas, on both nodes."""
    config = AppConfig(
        engine={"scheduler": {"max_queued": 400}},
        replica={"num_replicas": 3, "num_cpus": 1, "health_check_period_s": 0.5},
    )
    deployment = serve.deployment(EngineReplica, **replica_options(config))
    with running(session, "several", deployment.bind(config.engine, build_stub_engine)) as app:
        yield app


def test_a_killed_replica_costs_no_stream_a_token(several: RunningApp):
    async def scenario(ingress: Ingress) -> None:
        requests = [
            make_request(
                f"r{i}", make_prompt(1 + i % 70, i), n=1 + i % 2, max_tokens=430, ignore_eos=True
            )
            for i in range(60)
        ]
        outputs = [[[] for _ in range(request.sampling.n)] for request in requests]
        have_begun = [asyncio.Event() for _ in requests]

        async def one(index: int) -> None:
            async with aclosing(ingress.client.generate(requests[index])) as deltas:
                async for delta in deltas:
                    outputs[index][delta.index] += delta.token_ids
                    have_begun[index].set()

        victims = several.pids("EngineReplica")[:2]
        streams = [asyncio.create_task(one(index)) for index in range(len(requests))]
        await asyncio.gather(*(each.wait() for each in have_begun))
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        await asyncio.gather(*streams)
        for request, output in zip(requests, outputs, strict=True):
            assert output == [predicted_tokens(request, i) for i in range(request.sampling.n)]
        assert await ingress.figure("resumed_streams_total", reason="channel_lost") >= 1
        assert await ingress.figure("dropped_streams_total") == 0
        assert ingress.client.num_calls == 0
        await ingress.until_idle()

    as_ingress(several, scenario)


def test_leaving_while_no_replica_is_there_leaves_nothing_behind(replicas: RunningApp):
    async def scenario(ingress: Ingress) -> None:
        request = make_request("r", (5, 6), max_tokens=500, ignore_eos=True)
        reading = asyncio.create_task(ingress.generate(request))
        await ingress.until_opened()
        (victim,) = replicas.pids("EngineReplica")
        os.kill(victim, signal.SIGKILL)
        while ingress.listener._channels:
            await asyncio.sleep(0.005)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        assert not ingress.listener._streams
        again = make_request("again", (5, 6), max_tokens=5, ignore_eos=True)
        assert await ingress.generate(again) == predicted_tokens(again)
        await ingress.until_idle()
        assert ingress.client.num_calls == 0

    as_ingress(replicas, scenario)
