"""Blocks that a worker will have when it has computed what was sent to it.

They count as its own from the decision on, so that requests of the same prefix that come at once go
the same way. What assumes them (a request in flight) settles them again: after its first token the
worker's deltas tell the truth.
"""

from collections.abc import Iterable, Sequence

from rtp_serve.kv_cache.block import BlockHash


class AssumedBlocks:
    """Counted by (block, slot): two requests may assume the same."""

    def __init__(self) -> None:
        self.masks: dict[BlockHash, int] = {}
        """Bit i: assumed at slot i. No zeros. Read only."""
        self._more: dict[tuple[BlockHash, int], int] = {}  # beyond the first, which is the bit

    def assume(self, slot: int, hashes: Sequence[BlockHash]) -> None:
        bit = 1 << slot
        masks, more = self.masks, self._more
        for key in hashes:
            mask = masks.get(key)
            if mask is None:
                masks[key] = bit
            elif mask & bit:
                more[key, slot] = more.get((key, slot), 0) + 1
            else:
                masks[key] = mask | bit

    def settle(self, slot: int, hashes: Sequence[BlockHash]) -> None:
        """Take back an `assume` of the same arguments."""
        bit = 1 << slot
        masks, more = self.masks, self._more
        for key in hashes:
            if more and (key, slot) in more:
                count = more.pop((key, slot)) - 1
                if count:
                    more[key, slot] = count
                continue
            mask = masks.pop(key) ^ bit
            if mask:
                masks[key] = mask

    def check_invariants(self, assumed: Iterable[tuple[int, Sequence[BlockHash]]]) -> None:
        """It is what `assumed` adds up to."""
        again = AssumedBlocks()
        for slot, hashes in assumed:
            again.assume(slot, hashes)
        assert (again.masks, again._more) == (self.masks, self._more)
