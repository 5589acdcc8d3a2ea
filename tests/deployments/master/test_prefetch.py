"""A hot prefix: from the Master's advice to the blocks in another engine's cache."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from deployments.master.link import MasterLink
from deployments.master.wire import decode_ruling, decode_standing, encode
from rtp_serve.clock import WallClock
from rtp_serve.config.routing import RoutingConfig
from rtp_serve.engine.async_engine import AsyncEngine
from rtp_serve.routing.report import WorkerIdentity
from rtp_serve.routing.types import RequestFeatures, Role, WorkerId
from tests.deployments.master.played_master import PlayedMaster
from tests.factories import MemoryWorker, make_core, make_prompt, make_request, predicted_tokens
from tests.unit.engine.test_tiering import Node

NUM_BLOCKS = 8
HOT = make_prompt(16 * NUM_BLOCKS)
CONFIG = RoutingConfig.model_validate(
    {"policy": "prefix-affinity", "replication": {"enable": True}}
)


class LinkedEngine:
    """An engine over a node's tiers, and its link to the Master."""

    def __init__(self, name: str, node: Node, master: PlayedMaster) -> None:
        clock = WallClock()
        core = make_core(worker=MemoryWorker(64), access=node.access, clock=clock)
        self.engine = AsyncEngine(core, 64, lambda: "")
        self.worker_id = WorkerId(name)
        reporter = self.engine.reporter(WorkerIdentity(self.worker_id, 1, Role.MIXED, "node"))
        self._link = MasterLink(
            self.worker_id, reporter, master, clock, lambda: Role.MIXED, self.engine.prefetch
        )
        self._link.start()

    async def complete(self, name: str, prompt: tuple[int, ...]) -> int:
        """How many tokens of the prompt were cached on the device."""
        request = make_request(name, prompt, max_tokens=4)
        deltas = [delta async for delta in self.engine.generate(request)]
        assert [each for delta in deltas for each in delta.token_ids] == predicted_tokens(request)
        return deltas[0].cached.device

    async def close(self) -> None:
        await self._link.close()
        await asyncio.to_thread(self.engine.shutdown)


@asynccontextmanager
async def linked(name: str, node: Node, master: PlayedMaster) -> AsyncIterator[LinkedEngine]:
    engine = LinkedEngine(name, node, master)
    try:
        yield engine
    finally:
        await engine.close()


def known_blocks(master: PlayedMaster) -> dict[str, int]:
    """By worker."""
    workers = decode_standing(master.service.figures()).workers
    return {each.worker_id: each.num_cached_blocks for each in workers}


def test_a_hot_prefix_comes_to_the_second_engine_before_a_request_does():
    async def scenario() -> None:
        node, master = Node(), PlayedMaster(config=CONFIG)
        async with asyncio.timeout(30), linked("a", node, master) as first:
            assert await first.complete("r", HOT) == 0
            async with linked("b", node, master) as second:
                while known_blocks(master) != {"a": NUM_BLOCKS, "b": 0}:
                    await asyncio.sleep(0.01)
                while node.store.stats().host.counts.stored < NUM_BLOCKS:
                    await asyncio.sleep(0.01)
                hashes = first.engine.model.block_hashes(HOT, "")
                for number in range(20):
                    asked = RequestFeatures(f"hot {number}", len(HOT) + 1, hashes, 0.0)
                    ruling = decode_ruling(master.service.schedule(encode(asked)))
                    assert ruling.worker_id == "a", "no request brings it to b"
                while known_blocks(master)["b"] < NUM_BLOCKS:
                    await asyncio.sleep(0.01)
                assert await second.complete("s", (*HOT, 5)) == len(HOT)
        node.check()
        node.store.close()

    asyncio.run(scenario())
