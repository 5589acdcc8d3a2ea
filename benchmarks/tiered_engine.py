"""Engines in this process with and without tiers below the device, and one request on either."""

import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from benchmarks.conversations import BLOCK_SIZE
from benchmarks.held_store import HeldStore
from benchmarks.in_process import InProcessEngine
from rtp_serve.clock import Clock
from rtp_serve.config.engine import EngineConfig
from rtp_serve.config.kv_store import KVStoreConfig
from rtp_serve.errors import RtpServeError
from rtp_serve.kv_cache.spec import KVCacheSpec, TileOrder
from rtp_serve.kv_store.arena_files import MIN_ARENA_BYTES
from rtp_serve.kv_store.client import StoreClient, StoreStats
from rtp_serve.kv_store.opening import OpenedStore, open_local

_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Shares:
    """Sizes of the tiers over that of the device's cache."""

    host: int
    disk: int


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's."""

    ttft_s: float
    token_ids: tuple[int, ...]
    num_cached: int
    """Tokens of the prompt that were not computed; the tiers' among them."""

    num_host: int
    num_disk: int
    num_prompt: int

    @property
    def num_whole(self) -> int:
        """Those in whole blocks. Tiers have no others, and prompts may begin alike by chance."""
        return self.num_cached // BLOCK_SIZE * BLOCK_SIZE

    def is_cold(self) -> bool:
        """All blocks of the prompt were computed."""
        return not self.num_whole

    def is_from_device(self) -> bool:
        """Nothing came from below, and no full block was computed."""
        return self._has_all and not self.num_host + self.num_disk

    def is_from_host(self) -> bool:
        """All came from the arena."""
        return self._has_all and self.num_host == self.num_whole

    def is_from_disk(self) -> bool:
        """All came from the disk."""
        return self._has_all and self.num_disk == self.num_whole

    @property
    def _has_all(self) -> bool:
        return self.num_whole == (self.num_prompt - 1) // BLOCK_SIZE * BLOCK_SIZE


class TieredEngine:
    """An engine, and its store if it has one."""

    def __init__(self, engine: InProcessEngine, store: OpenedStore | None = None) -> None:
        self.engine = engine
        self._store = store

    def ask(self, prompt: tuple[int, ...], num_tokens: int) -> Answer:
        """One request. When its last token is there, its blocks may still be on their way."""
        token_ids: list[int] = []
        ttft_s = None
        started_s = time.perf_counter()
        with closing(self.engine.steps([prompt], num_tokens)) as steps:
            for deltas in steps:
                for delta in deltas:
                    ttft_s = ttft_s or time.perf_counter() - started_s
                    token_ids += delta.token_ids
                    if delta.finish_reason is not None:
                        return Answer(
                            ttft_s,
                            tuple(token_ids),
                            delta.num_cached_tokens,
                            delta.num_host_tokens,
                            delta.num_disk_tokens,
                            len(prompt),
                        )
        raise AssertionError("an engine that has no work has finished its request")

    def stats(self) -> StoreStats | None:
        """The store's; None without one."""
        return self._store.client.stats() if self._store is not None else None

    @property
    def slab_bytes(self) -> int:
        """Of a block in the arena."""
        stats = self.stats()
        assert stats is not None, "an engine without tiers has no arena"
        return stats.slab_bytes

    def num_stored(self) -> tuple[int, int]:
        """Blocks that came to the arena and to the disk, since the start."""
        stats = self.stats()
        assert stats is not None, "an engine without tiers stores nothing"
        return stats.host.counts.stored, stats.disk.counts.stored if stats.disk else 0

    def is_storing(self) -> bool:
        """Whether blocks are on their way to the arena or the disk."""
        stats = self.stats()
        return self.engine.num_storing > 0 or (stats is not None and stats.num_to_spill > 0)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Until the end, or until `hold` says otherwise, nothing is stored; what is computed waits
        for it."""
        with self._held_store.held():
            yield

    def hold(self, is_held: bool) -> None:
        """Whether nothing is stored from now on."""
        store = self._held_store
        store.hold() if is_held else store.let_go()

    @property
    def _held_store(self) -> HeldStore:
        assert self._store is not None, "an engine without tiers stores nothing"
        return cast(HeldStore, self._store.client)

    def settle(self) -> None:
        """Until nothing is on its way to the tiers."""
        for _ in self.engine.steps([], 1):
            pass
        before = None
        while (stats := self.stats()) != before or (stats is not None and stats.num_to_spill):
            before = stats
            time.sleep(_LOOK_S)  # the store tells nobody when it is done


@contextmanager
def device_only(config: EngineConfig) -> Iterator[TieredEngine]:
    """The device's prefix cache, and nothing below."""
    with closing(InProcessEngine(config)) as engine:
        yield TieredEngine(engine)


@contextmanager
def tiered(config: EngineConfig, shares: Shares, directory: Path) -> Iterator[TieredEngine]:
    """An arena that is nobody else's, and a disk tier in `directory`, with what that has already.

    Raises RtpServeError if the machine has no room for one of them.
    """
    assert config.cache.num_blocks is not None, "shares are of a known number of blocks"
    num_blocks = config.cache.num_blocks
    opened: list[OpenedStore] = []

    def open_store(
        store: KVStoreConfig, spec: KVCacheSpec, order: TileOrder, clock: Clock, _: Path
    ) -> OpenedStore | None:
        device_bytes = num_blocks * spec.block_bytes
        memory = max(shares.host * device_bytes, MIN_ARENA_BYTES)
        sized = KVStoreConfig.model_validate(
            {
                "host": {"enable": True, "memory": memory},
                "disk": {
                    "enable": True,
                    "directory": str(directory),
                    "max_size": max(shares.disk * device_bytes, 1 << 20),
                },
                "application": store.application,
            }
        )
        store_here = open_local(sized, spec, order, clock, directory)
        if store_here is None:
            return None
        held = cast(StoreClient, HeldStore(store_here.client, store_here.member.arena))
        opened.append(replace(store_here, client=held))
        return opened[0]

    store = {"host": {"enable": True}, "application": f"benchmark-{os.getpid()}"}
    values = config.model_dump() | {"kv_store": store}
    engine = InProcessEngine(EngineConfig.model_validate(values), open_store)
    with closing(engine):
        if not opened or opened[0].disk is None:
            raise RtpServeError("no room for the tiers: see the warnings above")
        yield TieredEngine(engine, opened[0])


def drop_page_cache(directory: Path) -> None:
    """What lies below is read from the disk next time."""
    for path in directory.rglob("*.segment"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
