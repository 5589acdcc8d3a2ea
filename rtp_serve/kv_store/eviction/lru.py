"""Least recently used: what was not used for the longest goes first."""

from collections.abc import Callable

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.eviction.families import Families
from rtp_serve.kv_store.eviction.leaf_queue import LeafQueue


class LRU:
    """See `EvictionPolicy`."""

    def __init__(self, capacity: int) -> None:
        """`capacity` is in blocks; this order does not depend on it."""
        assert capacity > 0, f"a capacity of {capacity} blocks"
        self._families = Families()
        self._queue = LeafQueue(self._families)

    def insert(self, key: BlockHash, parent: BlockHash | None) -> None:
        self._families.add(key, parent)
        self._queue.push(key)

    def hit(self, key: BlockHash) -> None:
        assert key in self._families, f"{key.hex()} is not here"
        self._queue.push(key)

    def remove(self, key: BlockHash) -> None:
        self._queue.discard(key)
        self._leave(key)

    def victim(self, is_evictable: Callable[[BlockHash], bool]) -> BlockHash | None:
        key = self._queue.take(is_evictable)
        if key is not None:
            self._leave(key)
        return key

    def _leave(self, key: BlockHash) -> None:
        childless = self._families.remove(key)
        if childless is not None:
            self._queue.children_gone(childless)

    def check_invariants(self) -> None:
        self._families.check_invariants()
        self._queue.check_invariants()
        assert len(self._queue) == len(self._families), "order and families disagree"
