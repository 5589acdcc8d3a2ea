"""A MasterService behind a connection without Ray, on a clock that moves when told to."""

import asyncio
from random import Random
from typing import Any

from deployments.master.channel import MasterSilent
from deployments.master.channel_wire import Method
from deployments.master.connection import MasterConnection
from deployments.master.service import WARM_UP_S, MasterService
from rtp_serve.clock import VirtualClock
from rtp_serve.config.routing import RoutingConfig
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.routing.block_stream import BlockDelta
from rtp_serve.routing.report import WorkerReport
from rtp_serve.routing.types import WorkerId, WorkerStatus

CONFIG = RoutingConfig()
BLOCKS = tuple(BlockHash(bytes([number]) * 32) for number in range(8))


class PlayedMaster(MasterConnection):
    """Answers at once, as long as it is there."""

    def __init__(self, clock: VirtualClock | None = None, config: RoutingConfig = CONFIG) -> None:
        super().__init__(lambda: None, "node")
        self.clock = clock or VirtualClock()
        self._config = config
        self.is_there = True
        self.num_asked: dict[str, int] = {}
        self.begin("first")

    def begin(self, instance: str) -> None:
        """In the place of the one before; it has warmed up."""
        self.service = MasterService(self._config, self.clock, Random(1), instance)
        self.clock.advance(WARM_UP_S)

    async def find(self) -> None:
        self._check()

    async def ask(self, method: Method, data: bytes = b"", *, timeout_s: float) -> bytes:
        await asyncio.sleep(0)
        self._check()
        self.num_asked[method] = self.num_asked.get(method, 0) + 1
        answer = getattr(self.service, method)
        return (answer() if method == "figures" else answer(data)) or b""

    def tell(self, method: Method, data: bytes) -> None:
        if self.is_there:
            getattr(self.service, method)(data)

    def _check(self) -> None:
        if not self.is_there:
            raise MasterSilent("it is not there")


def make_report(
    name: str,
    blocks: tuple[BlockHash, ...] = (),
    base_version: int = 0,
    **status: Any,
) -> WorkerReport:
    """Of a worker that has got these blocks."""
    worker_id = WorkerId(name)
    delta = BlockDelta(name, 1, base_version, base_version + 1, blocks)
    return WorkerReport(
        (delta,) if blocks else (),
        (),
        WorkerStatus(worker_id, 1, num_blocks=100, num_free_blocks=100, **status),
    )
