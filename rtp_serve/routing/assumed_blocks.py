"""Blocks that a worker will have when it has computed what was sent to it.

They count as its own from the decision on, so that requests of the same prefix that come at once go
the same way. What assumes them (a request in flight) settles them again: after its first token the
worker's deltas tell the truth.
"""

from collections.abc import Sequence

from rtp_serve.kv_cache.block import BlockHash


class AssumedBlocks:
    """Counted by (block, slot): two requests may assume the same."""

    def __init__(self) -> None:
        self.masks: dict[BlockHash, int] = {}
        """Bit i: assumed at slot i. No zeros. Read only."""
        self._counts: dict[tuple[BlockHash, int], int] = {}

    def assume(self, slot: int, hashes: Sequence[BlockHash]) -> None:
        bit = 1 << slot
        masks, counts = self.masks, self._counts
        for key in hashes:
            count = counts.get((key, slot), 0)
            counts[key, slot] = count + 1
            if not count:
                masks[key] = masks.get(key, 0) | bit

    def settle(self, slot: int, hashes: Sequence[BlockHash]) -> None:
        """Take back an `assume` of the same arguments."""
        bit = 1 << slot
        masks, counts = self.masks, self._counts
        for key in hashes:
            count = counts.pop((key, slot)) - 1
            if count:
                counts[key, slot] = count
                continue
            mask = masks.pop(key) ^ bit
            if mask:
                masks[key] = mask

    def check_invariants(self) -> None:
        masks: dict[BlockHash, int] = {}
        for (key, slot), count in self._counts.items():
            assert count > 0, f"{key.hex()} at {slot}: {count}"
            masks[key] = masks.get(key, 0) | 1 << slot
        assert masks == self.masks
