"""Streams that run on and on, and long prompts that come in bursts beside them."""

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx

from benchmarks.load import Target
from benchmarks.samples import percentile

_FIRST_ORDINARY_ID = 64
_SHORT_TOKENS = 64


@dataclass(frozen=True, slots=True)
class BurstLoad:
    """What the clients do."""

    num_streams: int
    """That run all the time."""

    stream_tokens: int
    """Of each, before the next one takes its place."""

    burst_size: int
    """Long prompts that come together."""

    burst_tokens: int
    """Of each of them; it asks for a few tokens in answer."""

    num_bursts: int
    period_s: float
    """From burst to burst."""


@dataclass(frozen=True, slots=True)
class BurstResult:
    """One run."""

    gaps_s: tuple[float, ...]
    """Between tokens of the running streams, from the first burst to the last long prompt's end."""

    ttfts_s: tuple[float, ...]
    """Of the long prompts."""

    num_failed: int

    def itl_ms(self, percent: float) -> float:
        return percentile(self.gaps_s, percent) * 1e3

    def ttft_ms(self, percent: float) -> float:
        return percentile(self.ttfts_s, percent) * 1e3


def run_bursts(target: Target, load: BurstLoad, vocab_size: int, seed: int) -> BurstResult:
    """Blocks until the last long prompt is answered."""
    return asyncio.run(_Run(target, load, vocab_size, seed).result())


class _Run:
    def __init__(self, target: Target, load: BurstLoad, vocab_size: int, seed: int) -> None:
        self._target = target
        self._load = load
        self._vocab_size = vocab_size
        self._ids = random.Random(seed)
        self._gaps: list[float] = []
        self._ttfts: list[float] = []
        self._num_failed = 0
        self._is_measured = False
        self._num_running = 0

    async def result(self) -> BurstResult:
        load = self._load
        async with httpx.AsyncClient(base_url=self._target.base_url, timeout=None) as client:
            streams = [asyncio.create_task(self._stream(client)) for _ in range(load.num_streams)]
            while self._num_running < load.num_streams:
                await asyncio.sleep(0.05)
            self._is_measured = True
            async with asyncio.TaskGroup() as prompts:
                for _ in range(load.num_bursts):
                    for _ in range(load.burst_size):
                        prompts.create_task(self._prompt(client))
                    await asyncio.sleep(load.period_s)
            for stream in streams:
                stream.cancel()
            await asyncio.gather(*streams, return_exceptions=True)
        return BurstResult(tuple(self._gaps), tuple(self._ttfts), self._num_failed)

    async def _stream(self, client: httpx.AsyncClient) -> None:
        """One after the other, for ever."""
        for number in itertools.count():
            last_s: float | None = None
            async for now_s in self._chunks(client, _SHORT_TOKENS, self._load.stream_tokens):
                if last_s is None:
                    self._num_running += number == 0
                elif self._is_measured:
                    self._gaps.append(now_s - last_s)
                last_s = now_s

    async def _prompt(self, client: httpx.AsyncClient) -> None:
        """To its end: who leaves after the first token stops the transfer of the rest."""
        began_s = time.perf_counter()
        first_s: float | None = None
        async for now_s in self._chunks(client, self._load.burst_tokens, 4):
            if first_s is None:
                first_s = now_s - began_s
                self._ttfts.append(first_s)

    async def _chunks(
        self, client: httpx.AsyncClient, num_tokens: int, max_tokens: int
    ) -> AsyncIterator[float]:
        """The times of an answer's chunks."""
        body = {
            "model": self._target.model,
            "prompt": self._ids.choices(range(_FIRST_ORDINARY_ID, self._vocab_size), k=num_tokens),
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        async with client.stream("POST", "/v1/completions", json=body) as response:
            async for line in response.aiter_lines():
                data = line.removeprefix("data: ")
                if not data or data == "[DONE]":
                    continue
                event = json.loads(data)
                if "error" in event:
                    self._num_failed += 1
                    return
                if event.get("choices"):
                    yield time.perf_counter()
