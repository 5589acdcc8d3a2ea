"""Three queues, first in, first out: what is used once goes soon and does not push out the rest.

    new ──► small (a tenth) ── used at most once since ──► evicted, a ghost
                │ used again                                   │ comes back
                ▼                                              ▼
              main ◄───────────────────────────────────────────┘
                │ at its old end: used since → to its new end, counted down; not used → evicted

Yang, Zhang, Qiu, Yue and Vinayak, "FIFO queues are all you need for cache eviction" (SOSP 2023).
Difference: if the queue that should give has no block that may go, the other gives.
"""

from collections.abc import Callable

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.eviction.families import Families
from rtp_serve.kv_store.eviction.ghost_list import GhostList
from rtp_serve.kv_store.eviction.leaf_queue import LeafQueue

_SMALL_FRACTION = 0.1
_MAX_USES = 3
_USES_FOR_MAIN = 2


class S3FIFO:
    """See `EvictionPolicy`. Ghosts are at most as many as main should have."""

    def __init__(self, capacity: int) -> None:
        """`capacity` is in blocks."""
        assert capacity > 0, f"a capacity of {capacity} blocks"
        self._small_size = max(1, int(capacity * _SMALL_FRACTION))
        self._num_ghosts = capacity - self._small_size
        self._families = Families()
        self._small = LeafQueue(self._families)
        self._main = LeafQueue(self._families)
        self._uses: dict[BlockHash, int] = {}  # only if there were any
        self._ghosts = GhostList()

    def insert(self, key: BlockHash, parent: BlockHash | None) -> None:
        self._families.add(key, parent)
        (self._main if self._ghosts.discard(key) else self._small).push(key)

    def hit(self, key: BlockHash) -> None:
        assert key in self._families, f"{key.hex()} is not here"
        self._uses[key] = min(self._uses.get(key, 0) + 1, _MAX_USES)

    def remove(self, key: BlockHash) -> None:
        if not self._small.discard(key):
            self._main.discard(key)
        self._leave(key)

    def victim(self, is_evictable: Callable[[BlockHash], bool]) -> BlockHash | None:
        key = None
        if len(self._small) >= self._small_size:
            key = self._take_small(is_evictable)
        if key is None:
            key = self._main.take(is_evictable, self._goes_round)
            if key is not None:
                self._leave(key)
        return key if key is not None else self._take_small(is_evictable)

    def _take_small(self, is_evictable: Callable[[BlockHash], bool]) -> BlockHash | None:
        key = self._small.take(is_evictable, self._goes_to_main)
        if key is not None:
            self._leave(key)
            self._ghosts.push(key)
            if len(self._ghosts) > self._num_ghosts:
                self._ghosts.drop_oldest()
        return key

    def _goes_to_main(self, key: BlockHash) -> bool:
        if self._uses.get(key, 0) < _USES_FOR_MAIN:
            return False
        del self._uses[key]
        self._main.push(key)
        return True

    def _goes_round(self, key: BlockHash) -> bool:
        uses = self._uses.pop(key, 0)
        if not uses:
            return False
        if uses > 1:
            self._uses[key] = uses - 1
        self._main.push(key)
        return True

    def _leave(self, key: BlockHash) -> None:
        self._uses.pop(key, None)
        childless = self._families.remove(key)
        if childless is not None:
            self._small.children_gone(childless)
            self._main.children_gone(childless)

    def check_invariants(self) -> None:
        self._families.check_invariants()
        self._small.check_invariants()
        self._main.check_invariants()
        num_blocks = len(self._small) + len(self._main)
        assert num_blocks == len(self._families), "queues and families disagree"
        assert len(self._ghosts) <= self._num_ghosts, f"{len(self._ghosts)} ghosts"
        for key, uses in self._uses.items():
            assert key in self._families, f"{key.hex()} has uses and is not here"
            assert 0 < uses <= _MAX_USES, f"{key.hex()} has {uses} uses"
