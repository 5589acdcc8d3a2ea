"""Who holds which block, and which blocks can be found again by content.

A block is in exactly one state:

    held      ref_count > 0, not in the free list
    cached    ref_count = 0, in the free list, and can be found: a hit revives it
    free      ref_count = 0, in the free list, and cannot

A block can be found in two ways. A full one is registered under its hash, and a hit on it is of
all its tokens. Any one whose content is known is a donor, of the tokens that it begins with: a full
one, and the partial last one of a sequence. Those tokens never change while the block can be found,
even if its holder goes on writing behind them.

The free list is in eviction order. A sequence gives its blocks back last block first, so a chain is
evicted from its leaf. The parent of a block that can be found is registered, always.

The pool knows neither sequences nor tensors. Block 0 is the null block and never leaves.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from rtp_serve.kv_cache.block import BlockContent, BlockHash
from rtp_serve.kv_cache.donor_index import Donor, DonorIndex

NULL_BLOCK = 0


@dataclass(slots=True)
class Block:
    """Bookkeeping of one block."""

    block_id: int
    ref_count: int = 0
    hash: BlockHash | None = None
    content: BlockContent | None = None
    """What it can give as a donor; a full block's only from the step on that follows its own."""

    parent_id: int | None = None
    """The registered block before this one, of a block that can be found; None of a first one."""

    child_ids: set[int] = field(default_factory=set)
    """Blocks that can be found and whose parent this one is."""

    @property
    def can_be_found(self) -> bool:
        return self.hash is not None or self.content is not None


class BlockPool:
    """All blocks of one rank's cache."""

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks >= 2, f"a pool needs the null block and one more, got {num_blocks}"
        self._blocks = [Block(block_id) for block_id in range(num_blocks)]
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks))
        self._id_by_hash: dict[BlockHash, int] = {}
        self._donors = DonorIndex()
        # Registered in this step, which has not run.
        self._unwritten: dict[int, BlockContent] = {}
        self._note: Callable[[BlockHash], None] | None = None

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

    def find_donor(self, parent: BlockHash, token_ids: tuple[int, ...]) -> Donor | None:
        """The block after `parent`, which is registered or a root, that begins with most of these
        tokens. Changes nothing; holds nothing."""
        return self._donors.find(parent, token_ids)

    def can_append(self, donor: Donor) -> bool:
        """Whether nobody holds a donor and it has nothing behind the tokens that it gives."""
        block = self._blocks[donor.block_id]
        if block.ref_count or block.hash is not None or block.content is None:
            return False
        return len(block.content.token_ids) == donor.num_tokens

    def watch(self, note: Callable[[BlockHash], None]) -> None:
        """From now on `note` hears each hash that is registered, and each that no longer is."""
        self._note = note

    def hashes(self) -> Iterable[BlockHash]:
        """All that are registered, as long as nothing changes."""
        return self._id_by_hash.keys()

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
                if not block.can_be_found:
                    self._free.move_to_end(block_id, last=False)

    def register(self, block_id: int, block_hash: BlockHash, content: BlockContent) -> bool:
        """Make a held, full block findable by its hash, and by what it begins with after `settle`.

        False, and it is not, if equal content is registered already, or if the parent is not.
        """
        block = self._blocks[block_id]
        assert block.ref_count > 0, f"block {block_id} is registered but nobody holds it"
        if block.hash is not None:
            return False
        if block_hash in self._id_by_hash:
            self._unregister(block_id)
            return False
        if not self._link(block, content):
            return False
        block.hash = block_hash
        self._id_by_hash[block_hash] = block_id
        self._unwritten[block_id] = content
        if self._note is not None:
            self._note(block_hash)
        return True

    def register_partial(self, block_id: int, content: BlockContent) -> None:
        """Make a held block findable by its first tokens, whose KV it has.

        It is not, if another one begins with them too, or if the parent is not registered.
        """
        block = self._blocks[block_id]
        assert block.ref_count > 0, f"block {block_id} is registered but nobody holds it"
        if block.hash is not None:
            return
        donor = self._donors.find(content.parent, content.token_ids)
        has_all = donor is not None and donor.num_tokens == len(content.token_ids)
        if has_all and donor is not None and donor.block_id != block_id:
            self._unregister(block_id)
        elif self._link(block, content):
            self._set_content(block, content)

    def settle(self) -> None:
        """The blocks registered so far have their KV before anything else that happens to them.

        To be called before each step: what comes with a step is copied before it is computed.
        """
        for block_id, content in self._unwritten.items():
            self._set_content(self._blocks[block_id], content)
        self._unwritten.clear()

    def clear_cache(self) -> None:
        """Forget all content: no block is findable afterwards."""
        for block in self._blocks:
            if block.can_be_found:
                self._unregister(block.block_id)

    def _link(self, block: Block, content: BlockContent) -> bool:
        """Hang a block on its parent; False if that is not registered."""
        if content.is_first:
            return True
        parent_id = self._id_by_hash.get(content.parent)
        if parent_id is None:
            return False
        block.parent_id = parent_id
        self._blocks[parent_id].child_ids.add(block.block_id)
        return True

    def _set_content(self, block: Block, content: BlockContent | None) -> None:
        if block.content is not None:
            self._donors.remove(block.block_id, block.content)
        if content is not None:
            self._donors.add(block.block_id, content)
        block.content = content

    def _take_one(self) -> int:
        block_id = self._next_leaf()
        del self._free[block_id]
        self._unregister(block_id)
        self._blocks[block_id].ref_count = 1
        return block_id

    def _next_leaf(self) -> int:
        """First block in eviction order that has no child.

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
                if self._note is not None:
                    self._note(block.hash)
            self._unwritten.pop(block.block_id, None)
            self._set_content(block, None)
            block.hash, block.parent_id = None, None
            block.child_ids.clear()

    def check_invariants(self) -> None:
        """Recompute the state from scratch and compare. For tests and idle debug runs."""
        idle = {block.block_id for block in self._blocks[1:] if block.ref_count == 0}
        assert set(self._free) == idle, f"free list {set(self._free)} is not {idle}"
        null = self._blocks[NULL_BLOCK]
        assert null.ref_count == 0, "the null block is held"
        assert not null.can_be_found, "the null block can be found"
        registered = {b.hash: b.block_id for b in self._blocks if b.hash is not None}
        assert registered == self._id_by_hash, "hash map and blocks disagree"
        contents = {b.block_id: b.content for b in self._blocks if b.content is not None}
        self._donors.check_invariants(contents)
        unknown = set(registered.values()) - set(contents) - set(self._unwritten)
        assert not unknown, f"registered blocks {unknown} are no donors"
        for block in self._blocks:
            assert block.ref_count >= 0, f"block {block.block_id} has {block.ref_count} holders"
            children = {b.block_id for b in self._blocks if b.parent_id == block.block_id}
            assert children == block.child_ids, f"children of block {block.block_id} disagree"
            if block.parent_id is not None:
                assert block.can_be_found, f"block {block.block_id} has a parent for nothing"
                assert self._blocks[block.parent_id].hash is not None, "a parent was evicted first"

    def check_holders(self, holders: dict[int, int]) -> None:
        """Compare reference counts with a count of who lists each block (id → count)."""
        held = {b.block_id: b.ref_count for b in self._blocks if b.ref_count}
        assert held == holders, f"reference counts {held} are not {holders}"
