"""A hot prefix: from the Master's advice to the blocks in an engine's cache on another node."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from deployments.master.link import MasterLink
from deployments.master.store_follower import StoreFollower
from deployments.master.wire import decode_ruling, decode_standing, encode
from rtp_serve.clock import WallClock
from rtp_serve.config.routing import RoutingConfig
from rtp_serve.engine.async_engine import AsyncEngine
from rtp_serve.kv_store.lower_tiers import StoreAccess
from rtp_serve.routing.report import WorkerIdentity
from rtp_serve.routing.types import RequestFeatures, Role, WorkerId
from tests.deployments.master.played_master import PlayedMaster
from tests.factories import make_core, make_prompt, make_request, predicted_tokens
from tests.unit.engine.test_tiering import Node

NUM_BLOCKS = 8
NUM_DEVICE_BLOCKS = 512  # so many that all that are asked for have room in one engine
HOT = make_prompt(16 * NUM_BLOCKS)
CONFIG = RoutingConfig.model_validate(
    {"policy": "prefix-affinity", "replication": {"enable": True}}
)


class LinkedEngine:
    """An engine over a node's tiers, and its link to the Master."""

    def __init__(self, name: str, access: StoreAccess, master: PlayedMaster) -> None:
        clock = WallClock()
        core = make_core(num_blocks=NUM_DEVICE_BLOCKS, access=access, clock=clock)
        self.engine = AsyncEngine(core, 64, lambda: "")
        self.worker_id = WorkerId(name)
        identity = WorkerIdentity(self.worker_id, 1, Role.MIXED, name, self.engine.store_name)
        self._link = MasterLink(
            self.worker_id,
            self.engine.reporter(identity),
            master,
            clock,
            lambda: Role.MIXED,
            self.engine.prefetch,
            StoreFollower(self.engine.store_name, self.engine.store_news),
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
async def linked(
    name: str, access: StoreAccess, master: PlayedMaster
) -> AsyncIterator[LinkedEngine]:
    engine = LinkedEngine(name, access, master)
    try:
        yield engine
    finally:
        await engine.close()


def access_of(node: Node, name: str, other: Node | None = None) -> StoreAccess:
    """`other` is asked for what the node has not."""
    access = node.access
    access.client.other = other.store if other is not None else None
    return replace(access, name=name)


def known_blocks(master: PlayedMaster) -> dict[str, tuple[int, int]]:
    """By worker: on the device, and in the tiers below it."""
    workers = decode_standing(master.service.figures()).workers
    return {each.worker_id: (each.num_cached_blocks, each.num_tier_blocks) for each in workers}


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        await asyncio.sleep(0.01)


def test_a_hot_prefix_comes_to_the_second_engine_before_a_request_does():
    async def scenario() -> None:
        here, there, master = Node(), Node(), PlayedMaster(config=CONFIG)
        async with (
            asyncio.timeout(60),
            linked("a", access_of(here, "store a"), master) as first,
            linked("b", access_of(there, "store b", here), master) as second,
        ):
            assert await first.complete("r", HOT) == 0
            has_all, has_none = (NUM_BLOCKS, NUM_BLOCKS), (0, 0)
            await until(lambda: known_blocks(master) == {"a": has_all, "b": has_none})
            hashes = first.engine.model.block_hashes(HOT, "")
            for number in range(20):
                asked = RequestFeatures(
                    f"hot {number}", len(HOT) + 1, hashes, 0.0, max_new_tokens=1
                )
                ruling = decode_ruling(master.service.schedule(encode(asked)))
                assert ruling.worker_id == "a", "no request brings it to b"
            await until(lambda: known_blocks(master)["b"][0] == NUM_BLOCKS)
            assert await second.complete("s", (*HOT, 5)) == len(HOT)
        for node in (here, there):
            node.check()
            node.store.close()

    asyncio.run(scenario())
