"""Brings chains to the device's cache that requests are expected to begin with.

    chain ──► restore, for no sequence ──► its blocks are cached on the device

What no tier has stays away, and nobody hears of it. There is one at a time, and none beside a
sequence's restore; it takes a quarter of the blocks that nobody holds at most, so that sequences do
not lack them. Its tokens are unknown: it is found by its hashes, and gives nothing as a donor.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rtp_serve.kv_cache.block import BlockHash, unread_content
from rtp_serve.kv_cache.block_pool import BlockPool
from rtp_serve.kv_store.lower_tiers import LowerTiers, Restore

_MAX_SHARE = 4
"""Of free blocks one in so many."""


@dataclass(slots=True)
class PrefetchCounts:
    """Since the start."""

    asked: int = 0
    """Chains that somebody wanted here."""

    made: int = 0
    """Of those, chains of which tiers have brought blocks."""

    blocks: int = 0
    """Brought."""


class Prefetching:
    """Of one engine; for its thread."""

    def __init__(self, pool: BlockPool, tiers: LowerTiers) -> None:
        self._pool = pool
        self._tiers = tiers
        self._job: Restore | None = None
        self._held: list[int] = []  # of its chain: what the device had, and then the job's blocks
        self.counts = PrefetchCounts()

    @property
    def is_active(self) -> bool:
        return self._job is not None

    def begin(self, chain: Sequence[BlockHash], *, may_begin: bool) -> None:
        """Ask the tiers for what the device lacks of a chain, unless they are asked already."""
        self.counts.asked += 1
        cached_ids = self._pool.lookup(chain)
        first = len(cached_ids)
        room = (self._pool.num_free - self._pool.num_idle(cached_ids)) // _MAX_SHARE
        num_wanted = min(len(chain) - first, room)
        if not may_begin or self._job is not None or num_wanted <= 0:
            return
        self._pool.hold(cached_ids)
        block_ids = self._pool.allocate(num_wanted)
        self._held = [*cached_ids, *block_ids]
        # Nobody computes what it does not bring.
        self._job = Restore(tuple(chain[: first + num_wanted]), first, tuple(block_ids), 0.0)
        self._tiers.restore(self._job)

    def is_bringing(self, key: BlockHash) -> bool:
        """Whether the block may be here in a moment."""
        return self._job is not None and key in self._job.chain[self._job.num_cached :]

    def has_ended(self, job: Restore) -> bool:
        """A restore has ended: whether it was this, whose blocks can be found from now on."""
        if job is not self._job:
            return False
        for index in range(job.num_cached, job.end):
            content = unread_content(job.chain, index)
            self._pool.register(self._held[index], job.chain[index], content)
        self._pool.release(self._held)
        self._job, self._held = None, []
        self.counts.made += job.num_filled > 0
        self.counts.blocks += job.num_filled
        return True

    def holders(self) -> Counter[int]:
        """Every block that is held. For tests and idle debug runs."""
        return Counter(self._held)
