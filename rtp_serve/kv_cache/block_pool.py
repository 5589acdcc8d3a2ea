"""Who holds which block, and which blocks can be found again by content.

A block is in exactly one state:

    held      ref_count > 0, not in the free list
    cached    ref_count = 0, in the free list, and registered under a hash: a hit revives it
    free      ref_count = 0, in the free list, without a hash

The free list is in eviction order. A sequence gives its blocks back last block first, so a chain is
evicted from its leaf. A registered block's parent is registered too, always.

The pool knows neither sequences nor tensors. Block 0 is the null block and never leaves.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rtp_serve.kv_cache.block import BlockHash

NULL_BLOCK = 0


@dataclass(slots=True)
class Block:
    """Bookkeeping of one block."""

    block_id: int
    ref_count: int = 0
    hash: BlockHash | None = None
    parent_id: int | None = None
    """Registered blocks: the registered block before this one, None for a first block."""

    child_ids: set[int] = field(default_factory=set)
    """Registered blocks whose parent this one is."""


class BlockPool:
    """All blocks of one rank's cache."""

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks >= 2, f"a pool needs the null block and one more, got {num_blocks}"
        self._blocks = [Block(block_id) for block_id in range(num_blocks)]
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks))
        self._id_by_hash: dict[BlockHash, int] = {}

    @property
    def num_usable(self) -> int:
        """Blocks that sequences can hold: all but the null block."""
        return len(self._blocks) - 1

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, cached ones included."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Registered blocks, held or not."""
        return len(self._id_by_hash)

    def lookup(self, hashes: Iterable[BlockHash]) -> list[int]:
        """Ids of the longest registered prefix of `hashes`. Changes nothing; holds nothing."""
        found: list[int] = []
        for block_hash in hashes:
            block_id = self._id_by_hash.get(block_hash)
            if block_id is None:
                break
            found.append(block_id)
        return found

    def hold(self, block_ids: Sequence[int]) -> None:
        """Add a reference to each block."""
        for block_id in block_ids:
            block = self._blocks[block_id]
            if block.ref_count == 0:
                del self._free[block_id]
            block.ref_count += 1

    def num_idle(self, block_ids: Sequence[int]) -> int:
        """How many of these are in the free list now, and would leave it if held."""
        return sum(self._blocks[block_id].ref_count == 0 for block_id in block_ids)

    def num_held_once(self, block_ids: Iterable[int]) -> int:
        """How many of these have one holder, and would be free without it."""
        return sum(self._blocks[block_id].ref_count == 1 for block_id in block_ids)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks, evicting cached ones in order. There must be that many free."""
        assert count <= len(self._free), f"asked for {count} of {len(self._free)} free blocks"
        return [self._take_one() for _ in range(count)]

    def release(self, block_ids: Sequence[int]) -> None:
        """Drop a reference to each block of a chain; pass them first to last."""
        for block_id in reversed(block_ids):
            block = self._blocks[block_id]
            assert block.ref_count > 0, f"block {block_id} is released but nobody holds it"
            block.ref_count -= 1
            if block.ref_count == 0:
                self._free[block_id] = None
                if block.hash is None:
                    self._free.move_to_end(block_id, last=False)

    def register(self, block_id: int, block_hash: BlockHash, parent_hash: BlockHash | None) -> bool:
        """Make a held, full block findable; `parent_hash` is None for a first block.

        False, and nothing happens, if equal content is registered already, or if the parent is not.
        """
        block = self._blocks[block_id]
        assert block.ref_count > 0, f"block {block_id} is registered but nobody holds it"
        if block.hash is not None or block_hash in self._id_by_hash:
            return False
        if parent_hash is not None:
            parent_id = self._id_by_hash.get(parent_hash)
            if parent_id is None:
                return False
            block.parent_id = parent_id
            self._blocks[parent_id].child_ids.add(block_id)
        block.hash = block_hash
        self._id_by_hash[block_hash] = block_id
        return True

    def clear_cache(self) -> None:
        """Forget all content: no block is findable afterwards."""
        for block_id in list(self._id_by_hash.values()):
            self._unregister(block_id)

    def _take_one(self) -> int:
        block_id = self._next_leaf()
        del self._free[block_id]
        self._unregister(block_id)
        self._blocks[block_id].ref_count = 1
        return block_id

    def _next_leaf(self) -> int:
        """First block in eviction order that has no registered child.

        A parent can come up before its child when two sequences computed the same prefix at once
        and only one copy was registered. It is passed over: moved to the end of the order.
        """
        for _ in range(len(self._free)):
            block_id = next(iter(self._free))
            if not self._blocks[block_id].child_ids:
                return block_id
            self._free.move_to_end(block_id)
        return next(iter(self._free))

    def _unregister(self, block_id: int) -> None:
        """Forget a block's content, and its descendants', which nothing could reach any more."""
        parent_id = self._blocks[block_id].parent_id
        if parent_id is not None:
            self._blocks[parent_id].child_ids.discard(block_id)
        doomed = [block_id]
        while doomed:
            block = self._blocks[doomed.pop()]
            doomed.extend(block.child_ids)
            if block.hash is not None:
                del self._id_by_hash[block.hash]
            block.hash, block.parent_id = None, None
            block.child_ids.clear()

    def check_invariants(self) -> None:
        """Recompute the state from scratch and compare. For tests and idle debug runs."""
        idle = {block.block_id for block in self._blocks[1:] if block.ref_count == 0}
        assert set(self._free) == idle, f"free list {set(self._free)} is not {idle}"
        null = self._blocks[NULL_BLOCK]
        assert null.ref_count == 0, "the null block is held"
        assert null.hash is None, "the null block is registered"
        registered = {b.hash: b.block_id for b in self._blocks if b.hash is not None}
        assert registered == self._id_by_hash, "hash map and blocks disagree"
        for block in self._blocks:
            assert block.ref_count >= 0, f"block {block.block_id} has {block.ref_count} holders"
            children = {b.block_id for b in self._blocks if b.parent_id == block.block_id}
            assert children == block.child_ids, f"children of block {block.block_id} disagree"
            if block.parent_id is not None:
                assert self._blocks[block.parent_id].hash is not None, "a parent was evicted first"

    def check_holders(self, holders: dict[int, int]) -> None:
        """Compare reference counts with a count of who lists each block (id → count)."""
        held = {b.block_id: b.ref_count for b in self._blocks if b.ref_count}
        assert held == holders, f"reference counts {held} are not {holders}"
