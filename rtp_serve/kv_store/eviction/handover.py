"""Residents pass from one policy to another, a few at a time, oldest first.

    old   decides, and knows all residents, until the end
    new   knows those that have moved; then it decides

Each block is inserted into `new`, and hit as often as it was, up to `MAX_HITS`. What is used or
comes meanwhile is the newest of those that wait, even if it had moved; so `new` sees residents in
the order of their last use. A use makes one wait at most, and more than one are moved for it.
"""

from collections import OrderedDict
from dataclasses import dataclass

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.eviction_policy import EvictionPolicy

MAX_HITS = 3
"""No policy tells more of them apart."""


@dataclass(slots=True)
class Resident:
    """What a policy that comes later has to know of a block."""

    parent: BlockHash | None
    num_hits: int = 0
    """Since it came, counted up to `MAX_HITS`."""


Residents = OrderedDict[BlockHash, Resident]
"""In the order of their last use."""


class Handover:
    """From the old policy, which is not known here, to `new`."""

    def __init__(self, new: EvictionPolicy, player: int, waiting: Residents) -> None:
        """`new` is empty; `player` is whose it is. `waiting` becomes the handover's own."""
        self.new = new
        self.player = player
        self.waiting = waiting
        self.moved: Residents = OrderedDict()

    def move(self, num_blocks: int) -> bool:
        """Move up to so many; whether all have moved."""
        for _ in range(min(num_blocks, len(self.waiting))):
            key, resident = self.waiting.popitem(last=False)
            self.new.insert(key, resident.parent)
            for _ in range(resident.num_hits):
                self.new.hit(key)
            self.moved[key] = resident
        return not self.waiting

    def hit(self, key: BlockHash) -> Resident:
        """It waits, as the newest; if it had moved, once more."""
        resident = self.moved.pop(key, None)
        if resident is not None:
            self.new.remove(key)
            self.waiting[key] = resident
        else:
            self.waiting.move_to_end(key)
        return self.waiting[key]

    def remove(self, key: BlockHash) -> None:
        """The block has gone from both."""
        if self.moved.pop(key, None) is not None:
            self.new.remove(key)
        else:
            del self.waiting[key]
