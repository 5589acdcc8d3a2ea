"""Weights exchanged under the whole application: by POST /admin/reload and by user_config."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from deployments.aggregated import app as build_application
from rtp_serve.config.serving import AppConfig
from tests.checkpoints import write_checkpoint
from tests.deployments.applications import RaySession, RunningApp, running, tiny_engine

pytestmark = pytest.mark.ray

ADMIN = {"authorization": "Bearer root"}
NUM_STREAMS = 50


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def exchange(model: Path, seed: int) -> Path:
    return write_checkpoint(model, json.loads((model / "config.json").read_text()), seed=seed)


def arguments(model: Path) -> dict[str, Any]:
    return {
        "engine": tiny_engine(model, max_num_seqs=32),
        "api": {"auth": {"admin_token_sha256": sha256(b"root").hexdigest()}},
        "replica": {"health_check_period_s": 0.5},
    }


@pytest.fixture
def served(session: RaySession, model: Path) -> Iterator[RunningApp]:
    """Two replicas."""
    config = arguments(model)
    config["replica"]["num_replicas"] = 2
    with running(session, "reload", build_application(AppConfig.model_validate(config))) as app:
        yield app


def body(index: int) -> dict[str, Any]:
    return {
        "prompt": "abcdefgh"[index % 8] * (3 + index),
        "max_tokens": 60,
        "temperature": index % 2,
        "seed": index,
        "ignore_eos": True,
    }


class Client:
    """Completions of the application, streamed or whole: (fingerprint, text)."""

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        self._url = url
        self._http = http

    async def whole(self, index: int) -> tuple[str, str]:
        answer = await self._http.post(f"{self._url}/v1/completions", json=body(index))
        assert answer.status_code == 200, answer.text
        return answer.json()["system_fingerprint"], answer.json()["choices"][0]["text"]

    async def stream(self, index: int, started: asyncio.Semaphore) -> tuple[str, str]:
        wanted = {**body(index), "stream": True}
        fingerprints, text = set(), ""
        async with self._http.stream("POST", f"{self._url}/v1/completions", json=wanted) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line.removeprefix("data: "))
                    assert "error" not in chunk
                    fingerprints.add(chunk["system_fingerprint"])
                    text += chunk["choices"][0]["text"]
                    started.release()
        (fingerprint,) = fingerprints
        return fingerprint, text

    async def reload(self) -> httpx.Response:
        return await self._http.post(f"{self._url}/admin/reload", headers=ADMIN)


def client(url: str) -> tuple[httpx.AsyncClient, Client]:
    http = httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=200))
    return http, Client(url, http)


def test_a_reload_under_fifty_streams_costs_no_token(served: RunningApp, model: Path):
    async def scenario() -> None:
        http, ask = client(served.url)
        async with http:
            before = [await ask.whole(index) for index in range(NUM_STREAMS)]
            started = asyncio.Semaphore(0)
            streams = [asyncio.create_task(ask.stream(i, started)) for i in range(NUM_STREAMS)]
            await started.acquire()
            exchange(model, seed=7)
            answer = await ask.reload()
            replicas = answer.json()["replicas"]
            assert len({each["replica"] for each in replicas}) == 2
            assert all(each["is_changed"] for each in replicas)
            (fingerprint,) = {each["fingerprint"] for each in replicas}
            late = await asyncio.gather(*map(ask.whole, range(NUM_STREAMS)))
            old = before[0][0]
            for index, result in enumerate(await asyncio.gather(*streams)):
                assert result in (before[index], late[index])
                assert result[0] in (old, fingerprint)
            after = [await ask.whole(index) for index in range(NUM_STREAMS)]
            assert late == after
            assert {each[0] for each in after} == {fingerprint} != {old}
            assert after != before

    asyncio.run(scenario())


def test_a_reload_of_a_damaged_checkpoint_says_why_and_changes_nothing(
    served: RunningApp, model: Path
):
    async def scenario() -> None:
        http, ask = client(served.url)
        async with http:
            before = await ask.whole(1)
            (model / "model.safetensors").write_bytes(b"\xff" * 40)
            answer = await ask.reload()
            assert answer.status_code == 409
            message = answer.json()["error"]["message"]
            assert message.startswith("2 of 2 replicas go on with the weights they had: replica ")
            assert "model.safetensors" in message
            assert "Traceback" not in message
            assert await ask.whole(1) == before

    asyncio.run(scenario())


def test_a_user_config_exchanges_weights_and_restarts_nothing(
    session: RaySession, model: Path, tmp_path: Path
):
    other = exchange(Path(shutil.copytree(model, tmp_path / "other")), seed=7)
    app = RunningApp("declared", f"{session.http_url}/declared", None)  # type: ignore[arg-type]

    def deploy(source: Path) -> None:
        override = {"name": "EngineReplica", "user_config": {"model": str(source)}}
        application = {
            "name": "declared",
            "route_prefix": "/declared",
            "import_path": "deployments.aggregated:app",
            "args": arguments(model),
            "deployments": [override],
        }
        schema = ServeDeploySchema.model_validate({"applications": [application]})
        _get_global_client().deploy_apps(schema, _blocking=True)

    async def until_changed(ask: Client, index: int, before: tuple[str, str]) -> tuple[str, str]:
        async with asyncio.timeout(30):
            while (now := await ask.whole(index))[0] == before[0]:
                pass
        return now

    async def scenario() -> None:
        http, ask = client(app.url)
        async with http:
            before = [await ask.whole(index) for index in range(2)]
            pids = app.pids("EngineReplica")
            await asyncio.to_thread(deploy, other)
            after = await until_changed(ask, 1, before[1])
            assert after[1] != before[1][1]
            await asyncio.to_thread(deploy, tmp_path / "missing")
            assert await ask.whole(1) == after
            await asyncio.to_thread(deploy, model)
            assert await until_changed(ask, 1, after) == before[1]
            assert app.pids("EngineReplica") == pids

    try:
        deploy(model)
        asyncio.run(scenario())
    finally:
        serve.delete("declared")
