"""Replicas that are told to stop hand their streams over and go; no client notices."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from rtp_serve.engine.request import Request
from tests.deployments.applications import RaySession, RunningApp
from tests.deployments.played_ingress import Ingress, as_ingress
from tests.factories import make_prompt, make_request, predicted_tokens

pytestmark = pytest.mark.ray

NAME = "drained"
REQUESTS = [
    make_request(f"r{i}", make_prompt(3 + i, i), n=1 + i % 2, max_tokens=450, ignore_eos=True)
    for i in range(12)
]


def deploy(num_replicas: int, version: int) -> None:
    """As by `serve deploy`: another `version` is other arguments, and so other processes."""
    application = {
        "name": NAME,
        "route_prefix": None,
        "import_path": "tests.deployments.stub_engine:slow_replicas",
        "args": {
            "engine": {"scheduler": {"max_queued": 100 + version}},
            "replica": {"health_check_period_s": 0.5, "drain_timeout_s": 600},
        },
        "deployments": [{"name": "EngineReplica", "num_replicas": num_replicas}],
    }
    schema = ServeDeploySchema.model_validate({"applications": [application]})
    _get_global_client().deploy_apps(schema)


@pytest.fixture
def deployed(session: RaySession, request: pytest.FixtureRequest) -> Iterator[RunningApp]:
    """As many replicas of version 1 as the test asks for."""
    try:
        deploy(request.param, version=1)
        while (status := serve.status().applications[NAME].status) == "DEPLOYING":
            asyncio.run(asyncio.sleep(0.1))
        assert status == "RUNNING"
        yield RunningApp(NAME, "", serve.get_deployment_handle("EngineReplica", NAME))
    finally:
        serve.delete(NAME)


async def until_one_is_gone(pids: list[int]) -> None:
    while all(Path(f"/proc/{pid}").exists() for pid in pids):
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("deployed", "num_replicas", "version"),
    [(2, 1, 1), (2, 2, 2), (1, 1, 2)],
    indirect=["deployed"],
    ids=["scale down", "update two", "update the only one"],
)
def test_a_replica_that_stops_hands_its_streams_over_and_goes(
    deployed: RunningApp, num_replicas: int, version: int
):
    async def scenario(ingress: Ingress) -> None:
        begun = asyncio.Semaphore(0)

        async def outputs(request: Request) -> list[list[int]]:
            tokens: list[list[int]] = [[] for _ in range(request.sampling.n)]
            async with aclosing(ingress.client.generate(request)) as deltas:
                async for delta in deltas:
                    if not any(tokens):
                        begun.release()
                    tokens[delta.index] += delta.token_ids
            return tokens

        olds = deployed.pids("EngineReplica")
        streams = [asyncio.create_task(outputs(request)) for request in REQUESTS]
        for _ in streams:
            await begun.acquire()
        deploy(num_replicas, version)
        await until_one_is_gone(olds)
        assert not any(stream.done() for stream in streams)
        for request, tokens in zip(REQUESTS, await asyncio.gather(*streams), strict=True):
            assert tokens == [predicted_tokens(request, i) for i in range(request.sampling.n)]
        assert await ingress.figure("resumed_streams_total", reason="drained") >= 1
        assert await ingress.figure("dropped_streams_total") == 0
        assert ingress.client.num_calls == 0

    as_ingress(deployed, scenario)
