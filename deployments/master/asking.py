"""Asks a Master at a steady rate, while workers report to it as busy replicas do."""

import asyncio
import threading
from collections import defaultdict, deque
from collections.abc import Mapping
from pathlib import Path
from random import Random

import ray

from deployments.cluster import OwnCluster
from deployments.master.actor import MasterPlan, find_or_start
from deployments.master.connection import MasterConnection
from deployments.master.link import PERIOD_S
from deployments.master.service import WARM_UP_S
from deployments.master.wire import decode_ruling, encode
from rtp_serve.clock import Clock, WallClock
from rtp_serve.config.routing import RoutingConfig
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.routing.block_stream import BlockDelta
from rtp_serve.routing.report import WorkerReport
from rtp_serve.routing.types import Outcome, RequestFeatures, WorkerId, WorkerStatus

_NUM_WORKERS = 3
_BLOCKS_A_REPORT = 32
_PROMPT_BLOCKS = 64
_ANSWER_TIMEOUT_S = 5.0


class ReportingWorker:
    """Gets some blocks in each period."""

    def __init__(
        self, name: str, master: MasterConnection, finished: deque[str], rng: Random
    ) -> None:
        """Says of the requests `finished` that they are."""
        self._name = name
        self._finished = finished
        self._master = master
        self._rng = rng
        self._version = 0

    async def run(self) -> None:
        while True:
            await self._master.ask("report", encode(self._report()), timeout_s=_ANSWER_TIMEOUT_S)
            await asyncio.sleep(PERIOD_S)

    def _report(self) -> WorkerReport:
        added = draw_blocks(self._rng, _BLOCKS_A_REPORT)
        self._version += 1
        delta = BlockDelta(self._name, 1, self._version - 1, self._version, added)
        finished = tuple(self._finished)
        self._finished.clear()
        status = WorkerStatus(
            WorkerId(self._name),
            1,
            num_blocks=100_000,
            num_free_blocks=100_000,
            finished_ids=finished,
        )
        return WorkerReport((delta,), (), status)


def draw_blocks(rng: Random, count: int) -> tuple[BlockHash, ...]:
    return tuple(BlockHash(rng.randbytes(32)) for _ in range(count))


async def measure(rate: float, seconds: float, clock: Clock, rng: Random) -> list[float]:
    """Seconds of each round trip."""
    plan = MasterPlan("round-trips", RoutingConfig())
    master = MasterConnection(lambda: find_or_start(plan), ray.get_runtime_context().get_node_id())
    await master.find()
    finished: defaultdict[str, deque[str]] = defaultdict(deque)
    workers = [
        asyncio.create_task(
            ReportingWorker(f"worker-{i}", master, finished[f"worker-{i}"], rng).run()
        )
        for i in range(_NUM_WORKERS)
    ]
    await asyncio.sleep(2 * WARM_UP_S)
    begin_s = clock.monotonic()
    trips: list[asyncio.Task[float]] = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, begin_s + number / rate - clock.monotonic()))
        trips.append(asyncio.create_task(_round_trip(master, number, finished, clock, rng)))
    took = await asyncio.gather(*trips)
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    master.close()
    return list(took)


async def _round_trip(
    master: MasterConnection,
    number: int,
    finished: Mapping[str, deque[str]],
    clock: Clock,
    rng: Random,
) -> float:
    name = f"request-{number}"
    blocks = draw_blocks(rng, _PROMPT_BLOCKS)
    request = RequestFeatures(name, 16 * _PROMPT_BLOCKS + 1, blocks, 0.0)
    asked_s = clock.monotonic()
    data = await master.ask("schedule", encode(request), timeout_s=_ANSWER_TIMEOUT_S)
    took_s = clock.monotonic() - asked_s
    ruling = decode_ruling(data)
    assert ruling.outcome is Outcome.ROUTED, ruling
    assert ruling.worker_id is not None, ruling
    finished[ruling.worker_id].append(name)
    return took_s


def ask(rate: float, seconds: float, directory: Path) -> list[float]:
    """Of a Master in a cluster of this process's own: seconds of each round trip, in order."""
    cluster = OwnCluster(directory)
    cluster.start()
    try:
        return asyncio.run(measure(rate, seconds, WallClock(), Random(1)))
    finally:
        ray.shutdown()
        cluster.end_processes(threading.Event())
