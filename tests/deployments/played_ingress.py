"""The test's own process as an ingress of replicas on the cluster."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from typing import Any

import ray
from prometheus_client.parser import text_string_to_metric_families

from deployments.replica_client import ReplicaClient
from deployments.replica_search import StreamLimits
from deployments.token_stream.listener import TokenListener
from rtp_serve.engine.request import Request
from tests.deployments.applications import RunningApp


class Ingress:
    """A listener and a client in this process."""

    def __init__(self, app: RunningApp) -> None:
        self.listener = TokenListener(
            ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()
        )
        self.client = ReplicaClient(app.handle, self.listener, StreamLimits(20.0, 3))

    async def generate(self, request: Request, stop_after: int | None = None) -> list[int]:
        token_ids: list[int] = []
        async with aclosing(self.client.generate(request)) as deltas:
            async for delta in deltas:
                token_ids += delta.token_ids
                if stop_after is not None and len(token_ids) >= stop_after:
                    break
        return token_ids

    async def figure(self, name: str, **labels: str) -> float:
        """One of the replica's metrics; 0 while there is no such sample."""
        text = await self.client.metrics_text()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == f"rtp_serve:{name}" and labels.items() <= sample.labels.items():
                    return float(sample.value)
        return 0.0

    async def until_opened(self) -> None:
        """A replica has taken a request."""
        while not self.listener._channels:
            await asyncio.sleep(0.005)

    async def until_idle(self) -> None:
        """Nothing runs or waits, and no KV block is held."""
        for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_ratio"):
            while await self.figure(name) != 0:
                await asyncio.sleep(0.02)


def as_ingress(app: RunningApp, scenario: Callable[[Ingress], Coroutine[Any, Any, None]]) -> None:
    async def play() -> None:
        async with asyncio.timeout(60), _listening(app) as ingress:
            await scenario(ingress)

    asyncio.run(play())


@asynccontextmanager
async def _listening(app: RunningApp) -> AsyncIterator[Ingress]:
    ingress = Ingress(app)
    await ingress.listener.start()
    try:
        yield ingress
    finally:
        await ingress.listener.close()
