"""Replicas that die or hang under an application: no client sees a wrong token or an error."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deployments.aggregated import app as build_application
from rtp_serve.config.serving import AppConfig
from tests.deployments.applications import RaySession, RunningApp, running, tiny_engine

pytestmark = pytest.mark.ray

NUM_STREAMS = 24
RESUME_S = 5.0
"""The most that a stream waits for its next token after the loss was noticed."""

NUM_BLOCKS = 4096
"""Room for all streams at one replica: one that waits for it waits for the end of others."""


@pytest.fixture
def served(session: RaySession, tiny_model: Path) -> Iterator[RunningApp]:
    """Two replicas, of which a silent one is noticed soon."""
    config = AppConfig(
        engine=tiny_engine(tiny_model, max_num_seqs=32) | {"cache": {"num_blocks": NUM_BLOCKS}},
        replica={"num_replicas": 2, "health_check_period_s": 0.5, "health_check_timeout_s": 1.0},
    )
    with running(session, "chaos", build_application(config)) as app:
        yield app


def body(index: int) -> dict[str, Any]:
    return {
        "prompt": "abcdefgh"[index % 8] * (3 + index),
        "max_tokens": 2000,
        "temperature": index % 2,
        "seed": index,
        "ignore_eos": True,
    }


class Client:
    """Completions of the application."""

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        self._url = f"{url}/v1/completions"
        self._http = http

    async def whole(self, index: int) -> str:
        answer = await self._http.post(self._url, json=body(index))
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])

    async def stream(self, index: int, begun: asyncio.Semaphore) -> str:
        text = ""
        wanted = {**body(index), "stream": True}
        async with self._http.stream("POST", self._url, json=wanted) as answer:
            async for data in event_data(answer):
                if data == b"[DONE]":
                    return text
                event = json.loads(data)
                assert "error" not in event, event
                if not text:
                    begun.release()
                text += event["choices"][0]["text"]
        raise AssertionError("the stream broke off")


async def event_data(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Of each event; httpx's lines end at more characters than those of an event do."""
    rest = b""
    async for piece in answer.aiter_bytes():
        *events, rest = (rest + piece).split(b"\n\n")
        for event in events:
            yield event.removeprefix(b"data: ")


async def figures(served: RunningApp, http: httpx.AsyncClient) -> dict[tuple[str, str], float]:
    """Samples of the ingress's streams, by name and by their reason or bucket."""
    text = (await http.get(f"{served.url}/metrics")).text
    return {
        (sample.name.removeprefix("rtp_serve:"), sample.labels.get("le", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "_streams" in sample.name or "time_to_resume" in sample.name
    }


@pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGSTOP])
def test_no_stream_is_lost_with_its_replica(served: RunningApp, what: signal.Signals):
    async def scenario() -> None:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(timeout=100, limits=limits) as http:
            client = Client(served.url, http)
            begun = asyncio.Semaphore(0)
            streams = [
                asyncio.create_task(client.stream(index, begun)) for index in range(NUM_STREAMS)
            ]
            for _ in streams:
                await begun.acquire()
            victim, _ = served.pids("EngineReplica")
            os.kill(victim, what)
            try:
                texts = await asyncio.gather(*streams)
            finally:
                with suppress(ProcessLookupError):  # Ray ends no process that does not run
                    os.kill(victim, signal.SIGKILL)
            now = await figures(served, http)
            num_resumed = now["time_to_resume_seconds_count", ""]
            assert num_resumed >= 1
            assert now["time_to_resume_seconds_bucket", str(RESUME_S)] == num_resumed
            assert ("dropped_streams_total", "") not in now
            assert texts == await asyncio.gather(*map(client.whole, range(NUM_STREAMS)))

    async def bounded() -> None:
        async with asyncio.timeout(120):
            await scenario()

    asyncio.run(bounded())
