"""Where an ingress sends requests, with its Master and without."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from deployments.live_replicas import LiveReplicas
from deployments.master.channel_wire import Method
from deployments.master.client import REPORTS_S, MasterClient, Route
from deployments.master.stand_in import StandIn
from deployments.master.wire import decode_standing, encode
from deployments.replica_model import ReplicaModel
from rtp_serve.clock import VirtualClock
from rtp_serve.config.routing import RoutingConfig
from rtp_serve.engine.client import ServedModel
from rtp_serve.errors import Overloaded
from rtp_serve.routing.types import Role
from tests.deployments.master.played_master import CONFIG, PlayedMaster, make_report
from tests.factories import make_prompt, make_request

MODEL = ServedModel("test", 512, 1000, (), namespace=b"weights")
PROMPT = make_prompt(64)
BLOCKS = MODEL.block_hashes(PROMPT, "")


class PlayedModel(ReplicaModel):
    def __init__(self) -> None:
        self._model = MODEL

    async def refresh(self) -> ServedModel:
        return MODEL


class Stage:
    """An ingress of replicas a, which has the prompt's blocks, and b."""

    def __init__(self, config: RoutingConfig = CONFIG) -> None:
        self.clock = VirtualClock()
        self.master = PlayedMaster(self.clock, config)
        self.live = LiveReplicas()
        self.live.tell(frozenset({"a", "b"}))
        stand_in = StandIn(config, Random(1), self.clock)
        self.client = MasterClient(self.master, stand_in, PlayedModel(), self.live, self.clock)
        self.master.service.report(encode(make_report("a", BLOCKS)))
        self.master.service.report(encode(make_report("b")))

    async def choose(self, name: str = "r", *excluded: str, **more: Any) -> Route | None:
        request = replace(make_request(name, PROMPT), **more)
        return await self.client.choose(request, excluded)

    async def until_up(self) -> None:
        self.client.start()
        while not self.master.num_asked.get("snapshot"):
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)

    async def until_asked(self, method: Method) -> None:
        """Once more, and the answer was taken."""
        asked = self.master.num_asked.get(method, 0)
        while self.master.num_asked.get(method, 0) == asked:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)

    @property
    def num_in_flight(self) -> int:
        return decode_standing(self.master.service.figures()).num_in_flight


def play(
    scenario: Callable[[Stage], Coroutine[Any, Any, None]], stage: Stage | None = None
) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            on = stage or Stage()
            await on.until_up()
            await scenario(on)
            await on.client.close()

    asyncio.run(bounded())


def test_the_master_s_choice_is_taken_and_booked_until_the_attempt_fails():
    async def scenario(stage: Stage) -> None:
        route = await stage.choose()
        assert route == Route("r", "a", "a")
        assert stage.num_in_flight == 1
        stage.client.ended(route, is_finished=False)
        assert stage.num_in_flight == 0
        assert 'by="master"' in stage.client.figures.render()

    play(scenario)


def test_who_is_excluded_or_withdrawn_is_not_chosen():
    async def scenario(stage: Stage) -> None:
        assert (await stage.choose("r1", "a")).replica == "b"
        stage.live.tell(frozenset({"b"}))
        assert (await stage.choose("r2")).replica == "b"
        assert await stage.choose("r3", "b") is None

    play(scenario)


def test_a_silent_master_s_last_snapshot_decides_and_what_it_decides_is_booked():
    async def scenario(stage: Stage) -> None:
        stage.master.is_there = False
        assert (await stage.choose()).replica == "a"
        prompts = [make_prompt(64, 1 + number) for number in range(20)]
        routes = [
            await stage.choose(f"r{number}", prompt_token_ids=prompt)
            for number, prompt in enumerate(prompts)
        ]
        assert sorted(each.replica for each in routes) == ["a"] * 10 + ["b"] * 10
        assert stage.master.num_asked.get("schedule", 0) == 0
        text = stage.client.figures.render()
        assert 'routing_fallbacks_total{reason="silent",to="snapshot"} 21.0' in text

    play(scenario)


@pytest.mark.parametrize("had_time", [False, True])
def test_a_master_that_answers_again_decides_when_it_knows_all_replicas_or_they_had_time(
    had_time: bool,
):
    async def scenario(stage: Stage) -> None:
        stage.master.is_there = False
        assert await stage.choose("r1") is not None
        stage.master.begin("second")
        stage.master.service.report(encode(make_report("b")))
        stage.master.is_there = True
        await stage.until_asked("snapshot")
        assert (await stage.choose("r2")).replica == "a", "the snapshot knows where the prompt is"
        if had_time:
            stage.clock.advance(REPORTS_S)
        else:
            stage.master.service.report(encode(make_report("a")))
        await stage.until_asked("snapshot")
        await stage.choose("r3")
        assert stage.master.num_asked["schedule"] == 1

    play(scenario)


def test_a_master_does_not_wait_for_a_replica_that_has_gone():
    async def scenario(stage: Stage) -> None:
        stage.master.is_there = False
        assert await stage.choose("r1") is not None
        stage.live.tell(frozenset({"b"}))
        stage.master.begin("second")
        stage.master.service.report(encode(make_report("b")))
        stage.master.is_there = True
        await stage.until_asked("snapshot")
        assert (await stage.choose("r2")).replica == "b"
        assert stage.master.num_asked["schedule"] == 1

    play(scenario)


def test_while_a_new_master_warms_up_the_snapshot_of_the_one_before_decides():
    async def scenario(stage: Stage) -> None:
        stage.master.begin("second")
        stage.clock.advance(0.0)
        assert (await stage.choose("r1")).replica == "a"
        assert 'to="snapshot"' in stage.client.figures.render()

    play(scenario)


def test_before_anybody_has_told_serve_chooses():
    async def scenario() -> None:
        stage = Stage()
        stage.master.is_there = False
        assert await stage.choose() is None

    asyncio.run(scenario())


def test_a_refusal_says_when_to_come_back_but_a_stream_that_was_lost_is_not_refused():
    slow = RoutingConfig.model_validate(
        {"slo_classes": {"default": {"ttft": [{"ttft_s": 1e-6}]}}, "admission": {"fair_slack": 1}}
    )

    async def scenario(stage: Stage) -> None:
        stage.master.is_there = False
        with pytest.raises(Overloaded, match="first token in") as caught:
            await stage.choose("r1")
        assert caught.value.retry_after_s >= 1
        assert await stage.choose("r2", emitted=((5,),)) is None

    play(scenario, Stage(slow))


def test_the_class_that_a_request_names_decides_at_the_master_and_on_its_snapshot():
    config = RoutingConfig.model_validate(
        {"slo_classes": {"default": {}, "late": {"ttft": [{"ttft_s": 1e-6}]}}}
    )

    async def scenario(stage: Stage) -> None:
        for is_there in (True, False):
            stage.master.is_there = is_there
            with pytest.raises(Overloaded, match="in class 'late'"):
                await stage.choose(f"refused {is_there}", slo_class="late")
            assert await stage.choose(f"taken {is_there}") is not None
        text = stage.client.figures.render()
        for by in ("master", "snapshot"):
            labels = f'by="{by}",outcome="rejected",reason="rejected",slo_class="late"'
            assert f"routing_decisions_total{{{labels}}} 1.0" in text

    play(scenario, Stage(config))


def test_of_a_disaggregated_fleet_both_replicas_are_named():
    async def scenario(stage: Stage) -> None:
        stage.master.begin("second")
        stage.master.service.report(encode(make_report("p", BLOCKS, role=Role.PREFILL)))
        stage.master.service.report(encode(make_report("q", role=Role.PREFILL)))
        stage.master.service.report(encode(make_report("a", role=Role.DECODE)))
        stage.master.service.report(encode(make_report("b", role=Role.DECODE)))
        route = await stage.choose("r1", "a")
        assert route == Route("r1", "b", "p")

    play(scenario)
