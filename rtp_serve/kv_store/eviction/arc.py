"""Adaptive replacement: recency against frequency, by which of the two was missed more.

    B1 ghosts ◄── evicted ── T1 used once      target: how much of the capacity T1 should have;
    B2 ghosts ◄── evicted ── T2 used again     a block back from B1 raises it, from B2 lowers it

Megiddo and Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache" (FAST 2003). Differences: a
victim is asked for before it is known what comes, so the target moves after a block's eviction and
not before, and a tie of T1 with the target is always for T2; if the side that should give has no
block that may go, the other gives.
"""

from collections.abc import Callable

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.eviction.families import Families
from rtp_serve.kv_store.eviction.ghost_list import GhostList
from rtp_serve.kv_store.eviction.leaf_queue import LeafQueue


class ARC:
    """See `EvictionPolicy`. Ghosts are at most as many as the capacity."""

    def __init__(self, capacity: int) -> None:
        """`capacity` is in blocks."""
        assert capacity > 0, f"a capacity of {capacity} blocks"
        self._capacity = capacity
        self._families = Families()
        self._once = LeafQueue(self._families)
        self._again = LeafQueue(self._families)
        self._once_ghosts = GhostList()
        self._again_ghosts = GhostList()
        self._target = 0.0

    def insert(self, key: BlockHash, parent: BlockHash | None) -> None:
        self._families.add(key, parent)
        num_once, num_again = len(self._once_ghosts), len(self._again_ghosts)
        if self._once_ghosts.discard(key):
            self._target = min(self._target + max(1, num_again / num_once), self._capacity)
            self._again.push(key)
        elif self._again_ghosts.discard(key):
            self._target = max(self._target - max(1, num_once / num_again), 0)
            self._again.push(key)
        else:
            self._once.push(key)
        self._trim_ghosts()

    def hit(self, key: BlockHash) -> None:
        assert key in self._families, f"{key.hex()} is not here"
        self._once.discard(key)
        self._again.push(key)

    def remove(self, key: BlockHash) -> None:
        if not self._once.discard(key):
            self._again.discard(key)
        self._leave(key)

    def victim(self, is_evictable: Callable[[BlockHash], bool]) -> BlockHash | None:
        once, again = (self._once, self._once_ghosts), (self._again, self._again_ghosts)
        is_once_first = len(self._once) > self._target
        for queue, ghosts in (once, again) if is_once_first else (again, once):
            key = queue.take(is_evictable)
            if key is not None:
                self._leave(key)
                ghosts.push(key)
                self._trim_ghosts()
                return key
        return None

    def _leave(self, key: BlockHash) -> None:
        childless = self._families.remove(key)
        if childless is not None:
            self._once.children_gone(childless)
            self._again.children_gone(childless)

    def _trim_ghosts(self) -> None:
        """Used once, with ghosts, at most the capacity; all together twice the capacity."""
        while self._once_ghosts and len(self._once) + len(self._once_ghosts) > self._capacity:
            self._once_ghosts.drop_oldest()
        num_blocks = len(self._families)
        while (
            self._again_ghosts
            and num_blocks + len(self._once_ghosts) + len(self._again_ghosts) > 2 * self._capacity
        ):
            self._again_ghosts.drop_oldest()

    def check_invariants(self) -> None:
        self._families.check_invariants()
        self._once.check_invariants()
        self._again.check_invariants()
        num_once, num_again = len(self._once), len(self._again)
        assert num_once + num_again == len(self._families), "queues and families disagree"
        assert 0 <= self._target <= self._capacity, f"target is {self._target}"
        num_ghosts = len(self._once_ghosts) + len(self._again_ghosts)
        assert not self._once_ghosts or num_once + len(self._once_ghosts) <= self._capacity
        assert not self._again_ghosts or len(self._families) + num_ghosts <= 2 * self._capacity
