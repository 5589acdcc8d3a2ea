"""How blocks come and go: one set of books over blocks, slabs, tenants, pins and the policy.

The ledger knows what holds a block (leases and pins, as counts; children) but neither deadlines nor
who asks: that is the index's. Every slab is free, kept back, or has exactly one block.

Uses are written down at once, and told to the policy before anything else that it hears: who asks
for a chain does not wait for a policy's thoughts on each of its blocks.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.block import Block, BlockState
from rtp_serve.kv_store.block_events import BlockEvents
from rtp_serve.kv_store.block_tree import BlockTree
from rtp_serve.kv_store.eviction_policy import EvictionPolicy
from rtp_serve.kv_store.index_stats import IndexCounts, SlabState
from rtp_serve.kv_store.lease import Location
from rtp_serve.kv_store.pins import PinTable
from rtp_serve.kv_store.quota import TenantUse
from rtp_serve.kv_store.reservation import StoreRequest
from rtp_serve.kv_store.slab_table import SlabTable

_MAX_UNTOLD = 1024
"""Uses that the policy has yet to hear of."""


class BlockLedger:
    """The blocks of one arena."""

    def __init__(
        self, slabs: SlabTable, use: TenantUse, policy: EvictionPolicy, events: BlockEvents
    ) -> None:
        self.tree = BlockTree()
        self.slabs = slabs
        self.use = use
        self.events = events
        self.pins = PinTable()
        self.counts = IndexCounts()
        self._policy = policy
        self._untold: deque[BlockHash] = deque()
        self._reserved: dict[int, Block] = {}
        self._leaving: dict[int, Block] = {}

    def reserved(self) -> list[Block]:
        """Blocks that are RESERVED."""
        return list(self._reserved.values())

    def add(
        self, request: StoreRequest, slab: int, generation: int, owner: str, deadline_s: float
    ) -> Block:
        """A RESERVED block. Its parent is there, its key is not, the slab was taken."""
        parent = self.tree.find(request.parent) if request.parent is not None else None
        above = None if parent is None else parent.generation
        block = Block(request.key, request.tenant, slab, generation, above, owner, deadline_s)
        self.tree.add(block)
        self.use.add(block.tenant)
        self._reserved[generation] = block
        return block

    def become_ready(self, block: Block) -> None:
        """Its bytes are there: it can be found, and evicted."""
        block.state = BlockState.READY
        del self._reserved[block.generation]
        self.tell_uses()
        self._policy.insert(block.key, self._parent_key(block))
        self.events.append(block.key, is_added=True)

    def hit(self, blocks: Iterable[Block]) -> None:
        """READY blocks were of use, one after the other."""
        self._untold.extend(block.key for block in blocks)
        if len(self._untold) > _MAX_UNTOLD:
            self.tell_uses()

    def tell_uses(self) -> None:
        """Let the policy hear of all uses."""
        while self._untold:
            self._policy.hit(self._untold.popleft())

    def evict(self, may_go: Callable[[Block], bool]) -> bool:
        """Give the slab of one block back that the policy chooses; False if none may go."""

        def is_evictable(key: BlockHash) -> bool:
            block = self.tree.find(key)
            assert block is not None, f"the policy has {key.hex()}, which is not there"
            return block.is_idle_leaf and may_go(block)

        self.tell_uses()
        key = self._policy.victim(is_evictable)
        if key is None:
            return False
        block = self.tree.find(key)
        assert block is not None, f"the policy chose {key.hex()}, which is not there"
        assert block.is_idle_leaf, f"the policy chose {block}"
        self.counts.evictions += 1
        self._leave(self.tree.take(block)[0])
        return True

    def remove(self, block: Block, quarantine_s: float) -> None:
        """A block goes, against the policy's order, and all after it.

        Slabs of reservations are kept back until `quarantine_s` after their deadline.
        """
        self.tell_uses()
        taken = self.tree.take(block)
        self.counts.orphaned += len(taken) - 1
        for each in taken:
            if each.state is BlockState.READY:
                self._policy.remove(each.key)
                self._leave(each)
            else:
                del self._reserved[each.generation]
                each.suspect_until_s = each.deadline_s + quarantine_s
                self._give_back(each)

    def end_reading(self, location: Location) -> None:
        """One lease less on a block that has one."""
        generation = location.generation
        block = self.tree.of_generation(generation) or self._leaving[generation]
        block.num_leases -= 1
        if block.state is BlockState.EVICTING and not block.num_leases:
            self._give_back(self._leaving.pop(generation))

    def unpinned(self, keys: Iterable[BlockHash]) -> None:
        """One pin less on each; the table of pins has dropped them."""
        for key in keys:
            block = self.tree.find(key)
            assert block is not None, f"{key.hex()} was pinned, and is not there"
            block.num_pins -= 1

    def slabs_by_state(self) -> dict[SlabState, int]:
        """Every state, and how many slabs are in it."""
        num_leased = sum(block.num_leases > 0 for block in self.tree)
        return {
            SlabState.FREE: self.slabs.num_free,
            SlabState.RESERVED: len(self._reserved),
            SlabState.READY: len(self.tree) - len(self._reserved) - num_leased,
            SlabState.LEASED: num_leased,
            SlabState.EVICTING: len(self._leaving),
            SlabState.QUARANTINED: self.slabs.num_quarantined,
        }

    def _leave(self, block: Block) -> None:
        """A READY block that nobody finds any more; its slab waits for those who read it."""
        if block.num_pins:
            self.pins.drop_key(block.key)
            block.num_pins = 0
        block.state = BlockState.EVICTING
        self.events.append(block.key, is_added=False)
        if block.num_leases:
            self._leaving[block.generation] = block
        else:
            self._give_back(block)

    def _give_back(self, block: Block) -> None:
        self.use.remove(block.tenant)
        if block.suspect_until_s is None:
            self.slabs.free(block.slab)
            return
        writer = block.owner if block.state is BlockState.RESERVED else None
        self.slabs.quarantine(block.generation, block.slab, writer, block.suspect_until_s)

    def _parent_key(self, block: Block) -> BlockHash | None:
        parent = self.tree.of_generation(block.parent) if block.parent is not None else None
        return None if parent is None else parent.key

    def check_invariants(self, num_slabs: int, leases: Iterable[Location]) -> None:
        """Recompute the state from scratch and compare; `leases` lists a place for each lease."""
        self.tree.check_invariants()
        blocks = [*self.tree, *self._leaving.values()]
        slabs = sorted([block.slab for block in blocks] + self.slabs.slabs())
        assert slabs == list(range(num_slabs)), f"slabs are {slabs}"
        used = Counter(block.tenant for block in blocks)
        assert used == self.use.used(), f"tenants have {used}"
        for key in self._untold:
            block = self.tree.find(key)
            assert block is not None, f"{key.hex()} was used, and is not there"
            assert block.state is BlockState.READY, f"{block} was used"
        reserved = {b.generation: b for b in blocks if b.state is BlockState.RESERVED}
        assert reserved == self._reserved, f"reserved are {reserved}"
        held = {block.location: block.num_leases for block in blocks if block.num_leases}
        assert held == Counter(leases), f"leases hold {held}"
        pinned = {block.key: block.num_pins for block in blocks if block.num_pins}
        assert pinned == self.pins.count_by_key(), f"pins hold {pinned}"
        for block in blocks:
            is_held = block.num_leases > 0 or block.num_pins > 0
            assert block.state is not BlockState.RESERVED or not is_held, f"{block} is held"
        for block in self._leaving.values():
            assert block.state is BlockState.EVICTING, f"{block} is leaving"
            assert block.num_leases, f"nobody reads {block}, which is leaving"
