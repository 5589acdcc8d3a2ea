"""Requests of a real fleet, routed by its Master."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from deployments.actors import NAMESPACE
from deployments.aggregated import app as build_application
from deployments.master.actor import MasterPlan
from rtp_serve.config.serving import AppConfig
from tests.deployments.applications import RaySession, RunningApp, running, tiny_engine

pytestmark = pytest.mark.ray

TOKEN = "root"
ADMIN = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def config(tiny_model: Path) -> AppConfig:
    """Two replicas, and by that a Master."""
    return AppConfig(
        engine=tiny_engine(tiny_model, max_num_seqs=32),
        routing={"slo_classes": {"default": {}, "late": {"ttft": [{"ttft_s": 1e-6}]}}},
        api={"auth": {"admin_token_sha256": sha256(TOKEN.encode()).hexdigest()}},
        replica={"num_replicas": 2, "health_check_period_s": 0.5, "health_check_timeout_s": 2.0},
    )


@pytest.fixture(scope="module")
def served(session: RaySession, config: AppConfig) -> Iterator[RunningApp]:
    with running(session, "master", build_application(config)) as app:
        yield app


class Client:
    """Of one application."""

    def __init__(self, served: RunningApp, http: httpx.AsyncClient) -> None:
        self._url = served.url
        self._http = http

    async def post(self, prompt: str | list[str], **more: Any) -> httpx.Response:
        body = {"prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True, **more}
        return await self._http.post(f"{self._url}/v1/completions", json=body)

    async def complete(self, prompt: str | list[str], **more: Any) -> str:
        answer = await self.post(prompt, **more)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])

    async def standing(self) -> dict[str, Any] | None:
        """None while the Master does not answer."""
        answer = await self._http.get(f"{self._url}/routing", headers=ADMIN)
        assert answer.status_code in (200, 503), answer.text
        return answer.json() if answer.status_code == 200 else None

    async def decided(self) -> dict[str, str]:
        """Which replica the latest requests went to."""
        standing = await self.standing()
        assert standing is not None
        return {each["request_id"]: each["worker_id"] for each in standing["decisions"]}

    async def samples(self, name: str, label: str) -> Counter[str]:
        """A figure of `/metrics`, by one of its labels."""
        text = (await self._http.get(f"{self._url}/metrics", headers=ADMIN)).text
        found: Counter[str] = Counter()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == f"rtp_serve:{name}":
                    found[sample.labels[label]] += int(sample.value)
        return found

    async def until_routed(self, other_than: str = "") -> dict[str, Any]:
        """Until a Master, not that of this instance, decides over two replicas."""
        while True:
            standing = await self.standing()
            if standing is not None and standing["instance"] != other_than:
                usable = [each for each in standing["workers"] if each["is_usable"]]
                if len(usable) == 2 and standing["age_s"] > 2:
                    return standing
            await asyncio.sleep(0.05)


@asynccontextmanager
async def connected(served: RunningApp) -> AsyncIterator[Client]:
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(timeout=60, limits=limits) as http:
        yield Client(served, http)


def play(served: RunningApp, scenario: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(90), connected(served) as client:
            await client.until_routed()
            await scenario(client)

    asyncio.run(bounded())


def master_pid(config: AppConfig) -> int:
    assert config.master is not None
    name = MasterPlan("master", config.master).actor_name
    actor = ray.get_actor(name, namespace=NAMESPACE)
    return int(ray._private.state.actors(actor._actor_id.hex())["Pid"])


def test_twenty_at_once_over_two_idle_replicas_go_ten_and_ten(served: RunningApp):
    async def scenario(client: Client) -> None:
        before = await client.samples("request_success_total", "replica")
        await client.complete([f"{i} of twenty at once" for i in range(20)])
        now = await client.samples("request_success_total", "replica")
        assert sorted((now - before).values()) == [10, 10]

    play(served, scenario)


def test_a_shared_prefix_goes_to_who_has_it(served: RunningApp):
    async def scenario(client: Client) -> None:
        prefix = "the instructions that all of these prompts begin with, " * 50
        await client.complete(prefix)
        (first,) = list((await client.decided()).values())[:1]
        before = await client.samples("request_success_total", "replica")
        for index in range(6):
            await client.complete(f"{prefix}{index}")
        now = await client.samples("request_success_total", "replica")
        assert now - before == {first: 6}

    play(served, scenario)


def test_a_request_is_of_the_class_that_it_names(served: RunningApp):
    async def scenario(client: Client) -> None:
        refused = await client.post("promised at once", slo_class="late")
        assert refused.status_code == 429, refused.text
        assert "in class 'late'" in refused.json()["error"]["message"]
        standing = await client.standing()
        assert standing is not None
        latest = standing["decisions"][0]
        assert (latest["slo_class"], latest["outcome"]) == ("late", "rejected")
        unknown = await client.post("promised nothing", slo_class="urgent")
        assert unknown.status_code == 400, unknown.text
        error = unknown.json()["error"]
        assert error["param"] == "slo_class"
        assert "must be one of 'default', 'late', got 'urgent'" in error["message"]

    play(served, scenario)


def test_the_master_has_no_torch(served: RunningApp, config: AppConfig):
    async def scenario(client: Client) -> None:
        maps = Path(f"/proc/{master_pid(config)}/maps").read_text()
        assert "libtorch" not in maps
        assert "msgspec" in maps

    play(served, scenario)


def test_a_killed_master_costs_no_request_and_knows_all_again(
    served: RunningApp, config: AppConfig
):
    async def scenario(client: Client) -> None:
        prefix = "what is in a cache before the Master dies, and after it, " * 8
        expected = await client.complete(prefix)
        await asyncio.sleep(0)
        before = await client.until_routed()
        (holder,) = list((await client.decided()).values())[:1]
        is_over = asyncio.Event()
        numbers = count()

        async def load() -> None:
            while not is_over.is_set():
                await client.complete(f"load {next(numbers)}")

        loads = [asyncio.create_task(load()) for _ in range(4)]
        await until_snapshot(client)
        os.kill(master_pid(config), signal.SIGKILL)
        try:
            by = await client.samples("routing_decisions_total", "by")
            while True:  # the snapshot decides as the Master did
                now = await client.samples("routing_decisions_total", "by")
                if now["snapshot"] - by["snapshot"] > 20:
                    break
                await asyncio.sleep(0.02)
            after = await client.until_routed(before["instance"])
        finally:
            is_over.set()
        await asyncio.gather(*loads)
        held = {each["worker_id"]: each["num_cached_blocks"] for each in after["workers"]}
        known = {each["worker_id"]: each["num_cached_blocks"] for each in before["workers"]}
        assert held.keys() == known.keys()
        assert all(held[each] >= known[each] for each in held)
        successes = await client.samples("request_success_total", "replica")
        assert await client.complete(prefix) == expected
        now = await client.samples("request_success_total", "replica")
        assert now - successes == {holder: 1}

    play(served, scenario)


def test_a_killed_replica_is_not_asked_again_and_its_streams_go_on_elsewhere(served: RunningApp):
    async def scenario(client: Client) -> None:
        prompts = [f"{index} outlives its replica" for index in range(6)]
        expected = [await client.complete(prompt, max_tokens=1500) for prompt in prompts]
        victims = served.pids("EngineReplica")
        streams = [
            asyncio.create_task(client.complete(prompt, max_tokens=1500)) for prompt in prompts
        ]
        while (await client.samples("num_requests_running", "replica")).total() < len(prompts):
            await asyncio.sleep(0.01)
        os.kill(victims[0], signal.SIGKILL)
        assert await asyncio.gather(*streams) == expected
        decided = await client.decided()
        first = {name: worker for name, worker in decided.items() if "#" not in name}
        again = {name: worker for name, worker in decided.items() if "#" in name}
        assert again
        assert all(worker != first[name.partition("#")[0]] for name, worker in again.items())

    play(served, scenario)


def test_tokens_are_those_of_an_application_without_a_master(
    session: RaySession, served: RunningApp, config: AppConfig
):
    bodies = [
        {"prompt": f"{index} of several", "max_tokens": 40, "temperature": index % 2, "seed": index}
        for index in range(12)
    ]
    routing = config.routing.model_copy(update={"master": "never"})
    alone = config.model_copy(update={"routing": routing})

    async def texts(app: RunningApp) -> list[str]:
        async with connected(app) as client:
            return await asyncio.gather(*(client.complete(**body) for body in bodies))

    with running(session, "alone", build_application(alone)) as app:
        answer = httpx.get(f"{app.url}/routing", headers=ADMIN, timeout=10)
        assert answer.json()["error"]["code"] == "no_master"
        assert asyncio.run(texts(app)) == asyncio.run(texts(served))


async def until_snapshot(client: Client) -> None:
    """Every few seconds an ingress has another one."""
    await asyncio.sleep(4)
