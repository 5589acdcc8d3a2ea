"""Load brings replicas, and their streams outlive those that go again."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path

import pytest
from ray import serve
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR
from ray.serve.config import AutoscalingConfig as ServeAutoscaling
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from deployments.autoscaling import autoscaling_options
from deployments.autoscaling_record import read_record
from deployments.observations import role_of
from rtp_serve.config.autoscaling import AutoscalingConfig
from rtp_serve.engine.request import Request
from rtp_serve.routing.types import Role
from tests.deployments.applications import RaySession, RunningApp
from tests.deployments.played_ingress import Ingress, as_ingress
from tests.factories import make_prompt, make_request, predicted_tokens

NAME = "scaled"
_CALLS_S = 10.0
LOAD = [
    make_request(f"load{i}", make_prompt(400, i), max_tokens=60, ignore_eos=True)
    for i in range(300)
]
LONG = [
    make_request(f"long{i}", make_prompt(5 + i, 500 + i), max_tokens=490, ignore_eos=True)
    for i in range(6)
]


def test_serve_takes_the_options_and_delays_nothing():
    config = AutoscalingConfig(min_replicas=1, max_replicas=3, downscale_delay_s=9)
    options = ServeAutoscaling.model_validate(autoscaling_options(config))
    assert (options.upscale_delay_s, options.downscale_delay_s) == (0, 0)
    assert options.metrics_interval_s == config.metrics_interval_s < 1
    told = options.policy.policy_kwargs["autoscaling"]
    assert AutoscalingConfig.model_validate(told) == config


def test_serve_s_own_rule_is_still_there():
    config = AutoscalingConfig(policy="ongoing-requests", target_ongoing_requests=3)
    options = ServeAutoscaling.model_validate(autoscaling_options(config))
    assert options.target_ongoing_requests == 3
    assert options.policy.is_default_policy_function()


def test_deployments_have_roles():
    names = ("EngineReplica", "PrefillReplica", "DecodeReplica", "Ingress")
    roles = [Role.MIXED, Role.PREFILL, Role.DECODE, Role.INGRESS]
    assert [role_of(each) for each in names] == roles


@pytest.fixture
def deployed(session: RaySession) -> Iterator[RunningApp]:
    autoscaling = {
        "min_replicas": 1,
        "max_replicas": 3,
        "downscale_delay_s": 3,
        "forecast": {"memory_s": 3},
        "warm_processes": 2,
        "targets": {"ttft": [{"ttft_s": 0.5}], "itl_s": 0.2},
    }
    application = {
        "name": NAME,
        "route_prefix": None,
        "import_path": "tests.deployments.stub_engine:slow_replicas",
        "args": {"replica": {"health_check_period_s": 0.5, "autoscaling": autoscaling}},
        "autoscaling_policy": {"policy_function": "deployments.autoscaling:ApplicationPolicy"},
    }
    schema = ServeDeploySchema.model_validate({"applications": [application]})
    try:
        _get_global_client().deploy_apps(schema)
        while (status := serve.status().applications[NAME].status) == "DEPLOYING":
            asyncio.run(asyncio.sleep(0.1))
        assert status == "RUNNING"
        yield RunningApp(NAME, "", serve.get_deployment_handle("EngineReplica", NAME))
    finally:
        serve.delete(NAME)


async def until_replicas(app: RunningApp, num: int) -> None:
    while len(await asyncio.to_thread(app.pids, "EngineReplica")) != num:
        await asyncio.sleep(0.1)


def warm_pids() -> set[int]:
    """Processes that have been started ahead, have the kernels, and that no replica has taken."""
    mark = WORKER_PROCESS_SETUP_HOOK_ENV_VAR.encode()
    found = set()
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            is_idle = entry.name.isdigit() and b"ray::IDLE" in (entry / "cmdline").read_bytes()
            has_mark = is_idle and mark in (entry / "environ").read_bytes()
            if has_mark and b"rtp_kernels/_C" in (entry / "maps").read_bytes():
                found.add(int(entry.name))
    return found


async def outputs(ingress: Ingress, request: Request) -> list[int]:
    tokens: list[int] = []
    async with aclosing(ingress.client.generate(request)) as deltas:
        async for delta in deltas:
            tokens += delta.token_ids
    return tokens


@asynccontextmanager
async def loaded(ingress: Ingress) -> AsyncIterator[None]:
    """Requests come all the time, more than one replica computes in time; all end well."""
    tasks: list[asyncio.Task[list[int]]] = []
    is_over = asyncio.Event()

    async def send() -> None:
        for request in LOAD:
            tasks.append(asyncio.create_task(outputs(ingress, request)))
            await asyncio.sleep(0.04)
            if is_over.is_set():
                return

    sending = asyncio.create_task(send())
    try:
        yield
    finally:
        is_over.set()
        await sending
        answers = await asyncio.gather(*tasks)
        for request, tokens in zip(LOAD, answers, strict=False):
            assert tokens == predicted_tokens(request, 0)


@pytest.mark.ray
def test_load_brings_replicas_and_streams_outlive_those_that_go(deployed: RunningApp):
    async def scenario(ingress: Ingress) -> None:
        while len(warm := warm_pids()) < 2:
            await asyncio.sleep(0.1)
        async with loaded(ingress):
            await until_replicas(deployed, 3)
            # Not all: one whose imports have not ended is not waited for.
            assert warm & {*await asyncio.to_thread(deployed.pids, "EngineReplica")}
            streams = [asyncio.create_task(outputs(ingress, each)) for each in LONG]
        await until_replicas(deployed, 1)
        for request, stream in zip(LONG, streams, strict=True):
            assert await stream == predicted_tokens(request, 0)
        async with asyncio.timeout(_CALLS_S):  # those to replicas that are gone end last
            while ingress.client.num_calls:
                await asyncio.sleep(0.02)
        record = await asyncio.to_thread(read_record, NAME)
        assert [each["num_replicas"] for each in record["changes"]][-2:] == [2, 1]
        assert record["changes"][0]["num_before"] == 1
        assert record["changes"][0]["reason"].split(":")[0] in ("arrivals", "backlog")
        assert record["present"][0]["role"] == "mixed"

    as_ingress(deployed, scenario)
