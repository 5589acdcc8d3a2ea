"""The index's rules over blocks without slabs: which blocks of a trace a policy would have had.

Requests come one after the other. Each hits what is there of its chain, and stores the rest as
`BlockIndex` does: slabs for all blocks first, in the chain's order, by evicting idle leaves but
never the parent; then the blocks become READY, last one first. A test holds it against the index.
"""

import heapq
from collections.abc import Iterable, Sequence

from benchmarks.block_traces import BlockTrace
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.eviction_policy import EvictionPolicy


class BlockCache:
    """Blocks under a policy."""

    def __init__(self, policy: EvictionPolicy, capacity: int) -> None:
        """`policy` is empty; `capacity` is in blocks."""
        self._policy = policy
        self._num_free = capacity
        self._parents: dict[BlockHash, BlockHash | None] = {}  # of READY blocks
        self._num_children: dict[BlockHash, int] = {}  # of READY and RESERVED blocks

    def request(self, chain: Sequence[BlockHash]) -> int:
        """How many of its blocks are there, from its beginning."""
        num_found = 0
        while num_found < len(chain) and chain[num_found] in self._parents:
            num_found += 1
        for key in reversed(chain[:num_found]):
            self._policy.hit(key)
        self._store(chain, num_found)
        return num_found

    def _store(self, chain: Sequence[BlockHash], start: int) -> None:
        reserved: list[tuple[BlockHash, BlockHash | None]] = []
        for place in range(start, len(chain)):
            parent = chain[place - 1] if place else None
            if not self._take_slab(parent):
                break
            reserved.append((chain[place], parent))
            if parent is not None:
                self._num_children[parent] = self._num_children.get(parent, 0) + 1
        for key, parent in reversed(reserved):
            self._parents[key] = parent
            self._policy.insert(key, parent)

    def _take_slab(self, parent: BlockHash | None) -> bool:
        if self._num_free:
            self._num_free -= 1
            return True
        victim = self._policy.victim(lambda key: key not in self._num_children and key != parent)
        if victim is None:
            return False
        above = self._parents.pop(victim)
        if above is not None:
            self._num_children[above] -= 1
            if not self._num_children[above]:
                del self._num_children[above]
        return True


def hit_rate(trace: BlockTrace, policy: EvictionPolicy, capacity: int) -> float:
    """Blocks found ÷ blocks wanted."""
    cache = BlockCache(policy, capacity)
    chains = ([trace.keys[block] for block in chain] for chain in trace.chains)
    return sum(map(cache.request, chains)) / trace.num_wanted


def best_hit_rate(trace: BlockTrace, capacity: int) -> float:
    """Of who knows the future (Belady's MIN), and need not store what others come before.

    Keeps the blocks that are wanted soonest. No other choice has more hits, leaves or not; but a
    block is never wanted before its parent is, and of those that are wanted together the first
    in the chain is kept, so what goes is a leaf.
    """
    future = _next_requests(trace.chains)
    kept: dict[int, int] = {}  # block → the request that wants it next
    heap: list[tuple[int, int, int]] = []  # latest next request, deepest block first
    num_hits = 0
    for chain, following in zip(trace.chains, future, strict=True):
        num_hits += sum(block in kept for block in chain)
        for place, (block, later) in enumerate(zip(chain, following, strict=True)):
            kept[block] = later
            heapq.heappush(heap, (-later, -place, block))
        while len(kept) > capacity:
            later, _, block = heapq.heappop(heap)
            if kept.get(block) == -later:
                del kept[block]
    return num_hits / trace.num_wanted


def _next_requests(chains: Sequence[Iterable[int]]) -> list[list[int]]:
    """Of each block of each chain, the next request that wants it; their number if none does."""
    following: dict[int, int] = {}
    found: list[list[int]] = []
    for number in reversed(range(len(chains))):
        found.append([following.get(block, len(chains)) for block in chains[number]])
        following.update(dict.fromkeys(chains[number], number))
    found.reverse()
    return found
