"""A hundred streams, and a decode replica that is killed in the middle of them."""

import asyncio
import json
import os
import random
import signal
import time
from dataclasses import dataclass

import httpx

from benchmarks.processes import command_line, cpu_jiffies
from benchmarks.samples import percentile
from benchmarks.servers import Server
from rtp_serve.errors import RtpServeError

_NUM_STREAMS = 100
_PROMPT_TOKENS = 96
_OUTPUT_TOKENS = 96
_MARKER = "DecodeReplica"
_FIRST_ORDINARY_ID = 64


@dataclass(frozen=True, slots=True)
class LostReplica:
    """What the clients saw."""

    pause_p95_s: float
    """Of the longest gap of each stream that had begun, from the kill on."""

    num_lost: int
    """Streams that ended early or with an error."""

    num_resumed: int
    """As the ingress counts them."""


def lose_a_replica(server: Server, vocab_size: int, seed: int) -> LostReplica:
    """Kill the one that runs most of the streams, when half of these have begun."""
    return asyncio.run(_Run(server, vocab_size, seed).result())


class _Run:
    def __init__(self, server: Server, vocab_size: int, seed: int) -> None:
        self._server = server
        self._vocab_size = vocab_size
        self._ids = random.Random(seed)
        self._last_s: dict[int, float] = {}
        self._pauses: dict[int, float] = {}
        self._killed_s: float | None = None
        self._num_lost = 0

    async def result(self) -> LostReplica:
        base_url = self._server.target.base_url
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=base_url, timeout=None, limits=limits) as client:
            streams = [self._stream(client, number) for number in range(_NUM_STREAMS)]
            await asyncio.gather(self._kill(), *streams)
        resumed = self._server.figures().get("resumed_streams_total", 0.0)
        pauses = list(self._pauses.values())
        return LostReplica(percentile(pauses, 95), self._num_lost, int(resumed))

    async def _kill(self) -> None:
        replicas = [pid for pid in self._server.pids() if _MARKER in command_line(pid)]
        if len(replicas) < 2:
            raise RtpServeError(f"{len(replicas)} decode replicas run, not 2")
        before = {pid: cpu_jiffies([pid]) for pid in replicas}
        while len(self._last_s) < _NUM_STREAMS // 2:
            await asyncio.sleep(0.01)
        busiest = max(replicas, key=lambda pid: cpu_jiffies([pid]) - before[pid])
        self._killed_s = time.perf_counter()
        os.kill(busiest, signal.SIGKILL)

    async def _stream(self, client: httpx.AsyncClient, number: int) -> None:
        body = {
            "model": self._server.target.model,
            "prompt": self._ids.choices(
                range(_FIRST_ORDINARY_ID, self._vocab_size), k=_PROMPT_TOKENS
            ),
            "max_tokens": _OUTPUT_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        num_tokens = 0
        async with client.stream("POST", "/v1/completions", json=body) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    num_tokens = (event.get("usage") or {}).get("completion_tokens", num_tokens)
                    self._note(number)
        self._num_lost += num_tokens != _OUTPUT_TOKENS

    def _note(self, number: int) -> None:
        now_s = time.perf_counter()
        last_s = self._last_s.get(number)
        self._last_s[number] = now_s
        if self._killed_s is not None and last_s is not None and last_s <= self._killed_s:
            self._pauses.setdefault(number, 0.0)
            self._pauses[number] = max(self._pauses[number], now_s - last_s)
