"""Fewer, larger deltas, for callers to whom every item is dear: a handle takes 1 ms an item."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from rtp_serve.engine.cache_answers import CacheStats, Pinned, Trimmed
from rtp_serve.engine.client import EngineClient, Reloaded, ServedModel
from rtp_serve.engine.request import Request, SequenceDelta
from rtp_serve.routing.standing import FleetStanding


class CoalescingClient:
    """An EngineClient: the first delta passes at once, later ones join others for a period."""

    def __init__(self, engine: EngineClient, period_s: float) -> None:
        self._engine = engine
        self._period_s = period_s

    async def generate(self, request: Request) -> AsyncGenerator[SequenceDelta, None]:
        loop = asyncio.get_running_loop()
        pending: dict[int, SequenceDelta] = {}
        due_s = loop.time()
        async with aclosing(self._engine.generate(request)) as deltas:
            arriving = asyncio.ensure_future(anext(deltas, None))
            try:
                while True:
                    wait_s = max(0.0, due_s - loop.time()) if pending else None
                    done, _ = await asyncio.wait((arriving,), timeout=wait_s)
                    if done:
                        delta = arriving.result()
                        if delta is None:
                            break
                        pending[delta.index] = _join(pending.get(delta.index), delta)
                        arriving = asyncio.ensure_future(anext(deltas, None))
                    if pending and loop.time() >= due_s:
                        joined, pending = pending, {}
                        for delta in joined.values():
                            yield delta
                        due_s = loop.time() + self._period_s
                for delta in pending.values():
                    yield delta
            finally:
                arriving.cancel()
                await asyncio.gather(arriving, return_exceptions=True)

    async def served_model(self) -> ServedModel:
        return await self._engine.served_model()

    async def reload(self) -> list[Reloaded]:
        return await self._engine.reload()

    async def cache_stats(self) -> list[CacheStats]:
        return await self._engine.cache_stats()

    async def trim_cache(self, num_bytes: int) -> list[Trimmed]:
        return await self._engine.trim_cache(num_bytes)

    async def pin_prefix(
        self, token_ids: Sequence[int], cache_salt: str, ttl_s: float
    ) -> list[Pinned]:
        return await self._engine.pin_prefix(token_ids, cache_salt, ttl_s)

    async def fleet_standing(self) -> FleetStanding:
        return await self._engine.fleet_standing()

    async def check_health(self) -> None:
        await self._engine.check_health()

    async def metrics_text(self) -> str:
        return await self._engine.metrics_text()


def _join(earlier: SequenceDelta | None, later: SequenceDelta) -> SequenceDelta:
    if earlier is None:
        return later
    cached = max(earlier.cached, later.cached)
    return replace(
        later,
        token_ids=earlier.token_ids + later.token_ids,
        logprobs=earlier.logprobs + later.logprobs,
        num_cached_tokens=cached.total,
        num_host_tokens=cached.host,
        num_disk_tokens=cached.disk,
        num_remote_tokens=cached.remote,
        prompt_logprobs=earlier.prompt_logprobs + later.prompt_logprobs,
        fingerprint=earlier.fingerprint,
    )
