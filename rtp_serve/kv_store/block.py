"""One block in the index, from its reservation until its slab is given back.

                 complete            acquire / release
    RESERVED ──────────────► READY ◄──────────────────► READY, leased n times
        │                      │ evicted, orphaned, mismatched     │ orphaned, mismatched
        │ abandoned, expired,  ▼                                   ▼
        │ orphaned            gone ◄──────────────────────── EVICTING
        ▼                          last lease ended                      its slab: free
    gone; its slab: free if the writer is known to have stopped, else QUARANTINED (`slab_table`)

RESERVED includes being written: the index does not see the first byte, and nothing hangs on it.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.lease import Location


class BlockState(StrEnum):
    """See the module."""

    RESERVED = "reserved"
    READY = "ready"
    EVICTING = "evicting"
    """Found by nobody any more, but somebody who found it may still be reading."""


@dataclass(slots=True)
class Block:
    """Bookkeeping of one block. Its generation names it; a key may come again."""

    key: BlockHash
    tenant: str
    slab: int
    generation: int
    parent: int | None
    """Generation of the block before it, None for a first block."""

    owner: str
    """Of the reservation; empty if that was an earlier index's."""

    deadline_s: float
    """Of the reservation; of no meaning once the block is READY."""

    state: BlockState = BlockState.RESERVED
    num_leases: int = 0
    num_pins: int = 0
    children: set[int] = field(default_factory=set)
    """Generations of the blocks after it, RESERVED ones included."""

    suspect_until_s: float | None = None
    """Until when somebody may be writing into the slab who should not; None if nobody does."""

    location: Location = field(init=False)

    def __post_init__(self) -> None:
        self.location = Location(self.key, self.slab, self.generation)

    @property
    def is_idle_leaf(self) -> bool:
        """Whether it can go without anybody missing it, now or as a parent."""
        is_held = self.num_leases or self.num_pins or self.children
        return self.state is BlockState.READY and not is_held
