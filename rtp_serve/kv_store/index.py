"""The metadata of a node's host arena: which block is in which slab, and who may write or read it.

One process owns the index; members of the arena ask it in batches. It touches no block's bytes.

    put   reserve → (the member writes the slab) → complete | abandon
    get   acquire → (the member copies out) → release, and mismatch if the copy was not whole

Members may die between any two calls, and in the middle of a copy: reservations and leases have
owners and deadlines. Time is an argument, on the node's monotonic clock.

The index itself may die as well. Each index begins with a scan of the arena (a new arena's headers
are zeros) and with an epoch that no index before it had, so generations are never repeated.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_cache.block_changes import BlockNews
from rtp_serve.kv_store.arena import SlabRecord
from rtp_serve.kv_store.block import Block, BlockState
from rtp_serve.kv_store.block_events import BlockEvent, BlockEvents
from rtp_serve.kv_store.block_tree import BlockTree
from rtp_serve.kv_store.eviction_policy import EvictionPolicy
from rtp_serve.kv_store.index_stats import IndexSnapshot, IndexStats
from rtp_serve.kv_store.lease import Lease, LeaseTable, Location
from rtp_serve.kv_store.ledger import BlockLedger
from rtp_serve.kv_store.quota import TenantUse
from rtp_serve.kv_store.rebuild import SortedSlabs, sort_slabs
from rtp_serve.kv_store.reservation import Refusal, RefusalReason, Reservation, StoreRequest
from rtp_serve.kv_store.slab_table import SlabTable

_EPOCH_BITS = 32
"""Generations, leases and events of an epoch are numbered from `epoch << 32` on: who still has a
number of the index before this one does not mean a thing of this one's."""


class SlabMarks(Protocol):
    """Where the next index will read what this one gave away."""

    def mark_reserved(self, reservation: Reservation) -> None:
        """From now on the slab has nobody's bytes, until the reservation's owner wrote them."""
        ...


@dataclass(frozen=True, slots=True)
class IndexLimits:
    """How long things are held, and how many."""

    session_s: float = 10.0
    """From a reservation to its `complete`."""

    quarantine_s: float = 60.0
    """How long after its deadline a writer that nobody hears of is taken to be able to write."""

    lease_s: float = 10.0
    """From `acquire` or `renew` to `release`."""

    max_pins_per_slab: float = 0.5
    """Pins per slab, at most."""

    num_events: int = 4096
    """How many events are remembered."""


class BlockIndex:
    """All blocks of one arena."""

    def __init__(
        self,
        records: Iterable[SlabRecord],
        slab_bytes: int,
        epoch: int,
        policy: EvictionPolicy,
        marks: SlabMarks,
        now_s: float,
        limits: IndexLimits | None = None,
        quotas: Mapping[str, int] | None = None,
    ) -> None:
        """`records` has every slab of the arena. `policy` is empty and becomes the index's own.
        `quotas` are slabs by tenant, see `TenantUse`."""
        self._limits = limits or IndexLimits()
        self._slab_bytes = slab_bytes
        first_number = epoch << _EPOCH_BITS
        self._next_generation = first_number
        self._marks = marks
        self._leases = LeaseTable(first_number)
        slabs = sort_slabs(records, first_number)
        self._num_slabs = len(slabs.ready) + len(slabs.unsettled) + len(slabs.free)
        self._ledger = BlockLedger(
            SlabTable(slabs.free),
            TenantUse(self._num_slabs, quotas or {}),
            policy,
            BlockEvents(self._limits.num_events, first_number),
        )
        self._take_over(slabs, now_s)

    # Storing

    def reserve(
        self, requests: Sequence[StoreRequest], owner: str, now_s: float
    ) -> tuple[Reservation | Refusal, ...]:
        """A slab for each block that is not there, if there can be one; in the requests' order."""
        self.reap(now_s)
        return tuple(self._reserve(request, owner, now_s) for request in requests)

    def complete(self, reservations: Sequence[Reservation]) -> tuple[bool, ...]:
        """The slabs are written: whether each can be found now.

        False for a reservation that has ended; what was written is lost, and nothing else is.
        """
        completed = [self._complete(reservation) for reservation in reservations]
        for block in reversed(completed):
            if block is not None and block.state is BlockState.RESERVED:
                self._ledger.become_ready(block)
                self._ledger.counts.stored += 1
        return tuple(block is not None for block in completed)

    def abandon(self, reservations: Iterable[Reservation]) -> None:
        """Their owner has not written the slabs and never will."""
        for reservation in reservations:
            block = self._tree.of_generation(reservation.generation)
            if block is not None and block.state is BlockState.RESERVED:
                self._remove(block)
            self._ledger.slabs.settle(reservation.generation)

    # Reading

    def acquire(self, chain: Sequence[BlockHash], owner: str, now_s: float) -> Lease:
        """Hold the blocks that are there of a chain, from its beginning, until `release`."""
        found = self._tree.ready_prefix(chain)
        self._ledger.hit(reversed(found))
        for block in found:
            block.num_leases += 1
        self._ledger.counts.hits += len(found)
        self._ledger.counts.misses += len(chain) - len(found)
        locations = tuple(block.location for block in found)
        return self._leases.grant(owner, locations, now_s + self._limits.lease_s)

    def count_ready(self, chain: Sequence[BlockHash]) -> int:
        """How many blocks are there of a chain, from its beginning. Nobody has used them."""
        return len(self._tree.ready_prefix(chain))

    def hold(self, locations: Iterable[Location], owner: str) -> Lease:
        """Hold those blocks that are still where they were, until `release`, however long that
        takes, or for as long as the owner lives; nobody has used them."""
        held = []
        for location in locations:
            block = self._tree.of_generation(location.generation)
            if block is not None and block.state is BlockState.READY:
                block.num_leases += 1
                held.append(block.location)
        return self._leases.grant(owner, tuple(held), math.inf)

    def renew(self, lease_id: int, now_s: float) -> Lease | None:
        """Hold a lease for longer; None if it has ended."""
        return self._leases.renew(lease_id, now_s + self._limits.lease_s)

    def release(self, lease_id: int) -> None:
        """End a lease. One that has ended is no mistake: its deadline may have come first."""
        lease = self._leases.take(lease_id)
        for location in lease.locations if lease is not None else ():
            self._ledger.end_reading(location)

    def mismatch(self, location: Location, now_s: float) -> None:
        """A reader did not find there what the index says. The block goes, and all after it.

        The slab is kept back: who wrote into it may do so again.
        """
        block = self._tree.of_generation(location.generation)
        if block is None or block.state is not BlockState.READY or block.location != location:
            self._ledger.counts.stale += 1
            return
        self._ledger.counts.mismatches += 1
        block.suspect_until_s = now_s + self._limits.quarantine_s
        self._remove(block)

    # Keeping and dropping

    def pin(self, keys: Iterable[BlockHash], owner: str, expires_s: float | None) -> int:
        """Keep blocks until the time, or for as long as the owner lives; how many are pinned.

        A block that is not READY is not pinned, nor one beyond the limit. Pin a chain from its
        beginning: pins count towards the limit, blocks before a pinned one stay without.
        """
        pins = self._ledger.pins
        max_pins = int(self._num_slabs * self._limits.max_pins_per_slab)
        num_pinned = 0
        for block in filter(None, map(self._tree.find, keys)):
            is_pinned = pins.has(owner, block.key)
            if block.state is BlockState.READY and (is_pinned or len(pins) < max_pins):
                pins.add(owner, block.key, expires_s)
                block.num_pins += not is_pinned
                num_pinned += 1
        return num_pinned

    def unpin(self, keys: Iterable[BlockHash], owner: str) -> None:
        """Take an owner's pins back; those it has not are passed over."""
        self._ledger.unpinned(key for key in keys if self._ledger.pins.drop(owner, key))

    def pins(self) -> list[tuple[str, BlockHash, float | None]]:
        """See `PinTable.all`; `pin` takes them back."""
        return self._ledger.pins.all()

    def drop_oldest(self, num_blocks: int) -> int:
        """Evict up to `num_blocks` blocks, whosever they are; how many could go."""
        for num_dropped in range(num_blocks):
            if not self._ledger.evict(lambda _: True):
                return num_dropped
        return num_blocks

    def trim(self, num_bytes: int) -> int:
        """Evict blocks of at least so many bytes; how many bytes could go."""
        return self.drop_oldest(-(-num_bytes // self._slab_bytes)) * self._slab_bytes

    def owners(self) -> set[str]:
        """For whom something is held; `member.is_dead` tells of which not to."""
        owners = {lease.owner for lease in self._leases}
        owners |= {block.owner for block in self._ledger.reserved()}
        return owners | self._ledger.pins.owners() | self._ledger.slabs.owners()

    def owner_died(self, owner: str) -> None:
        """The process is gone, not only silent: nothing that was its is held for it any more."""
        for lease in self._leases.of(owner):
            self.release(lease.lease_id)
        self._ledger.unpinned(self._ledger.pins.drop_owner(owner))
        self._end_sessions(each for each in self._ledger.reserved() if each.owner == owner)
        self._ledger.slabs.owner_died(owner)

    def reap(self, now_s: float) -> None:
        """End what has run out: leases, pins, reservations, quarantines. To be called every now and
        then: what waits for a quiet moment is done too."""
        for lease in self._leases.due(now_s):
            self.release(lease.lease_id)
        self._ledger.unpinned(self._ledger.pins.drop_expired(now_s))
        due = [each for each in self._ledger.reserved() if each.deadline_s <= now_s]
        self._ledger.counts.reaped += len(due)
        self._end_sessions(due)
        self._ledger.slabs.reap(now_s)
        self._ledger.tell_uses()

    # Telling

    def events_since(self, version: int) -> tuple[BlockEvent, ...] | None:
        """See `BlockEvents.since`; None asks for a snapshot."""
        return self._ledger.events.since(version)

    def news(self, since: int | None) -> tuple[int, BlockNews | None]:
        """The present version, and what `BlockEvents.news` says."""
        events = self._ledger.events
        ready = (block.key for block in self._tree if block.state is BlockState.READY)
        return events.version, events.news(since, ready)

    def snapshot(self) -> IndexSnapshot:
        """All that can be found."""
        ready = [block for block in self._tree if block.state is BlockState.READY]
        return IndexSnapshot(self._ledger.events.version, tuple(block.key for block in ready))

    def stats(self) -> IndexStats:
        """The present, and counts."""
        ledger = self._ledger
        used = ledger.use.used()
        return IndexStats(
            ledger.slabs_by_state(),
            {tenant: count * self._slab_bytes for tenant, count in used.items()},
            len(self._leases),
            len(ledger.pins),
            ledger.events.version,
            replace(ledger.counts),
        )

    @property
    def _tree(self) -> BlockTree:
        return self._ledger.tree

    def _take_over(self, slabs: SortedSlabs, now_s: float) -> None:
        """What an index before this one left in the arena."""
        latest_s = now_s + self._limits.session_s
        for record in slabs.unsettled:
            if record.header is None:
                generation, deadline_s = self._new_generation(), latest_s
            else:
                generation = record.header.generation
                deadline_s = min(record.header.deadline_s, latest_s)
            until_s = deadline_s + self._limits.quarantine_s
            self._ledger.slabs.quarantine(generation, record.slab, None, until_s)
        blocks = [
            self._ledger.add(header.request, slab, header.generation, "", header.deadline_s)
            for slab, header in ((each.slab, each.header) for each in slabs.ready)
        ]
        for block in reversed(blocks):
            self._ledger.become_ready(block)

    def _reserve(self, request: StoreRequest, owner: str, now_s: float) -> Reservation | Refusal:
        reason = self._reason_to_refuse(request)
        if reason is not None:
            return Refusal(request.key, reason)
        slab = self._take_slab(request)
        if slab is None:
            self._ledger.counts.refused_full += 1
            return Refusal(request.key, RefusalReason.FULL)
        deadline_s = now_s + self._limits.session_s
        reservation = Reservation(request, slab, self._new_generation(), owner, deadline_s)
        self._ledger.add(request, slab, reservation.generation, owner, deadline_s)
        self._marks.mark_reserved(reservation)
        return reservation

    def _reason_to_refuse(self, request: StoreRequest) -> RefusalReason | None:
        block = self._tree.find(request.key)
        if block is not None and block.state is BlockState.READY:
            self._ledger.hit([block])
            return RefusalReason.PRESENT
        if block is not None:
            return RefusalReason.RESERVED
        if request.parent is not None and self._tree.find(request.parent) is None:
            return RefusalReason.NO_PARENT
        return None

    def _take_slab(self, request: StoreRequest) -> int | None:
        """A free slab, or another block's: of a tenant over its quota, else of the same tenant."""

        def is_spare(block: Block) -> bool:
            return block.key != request.parent and self._ledger.use.is_over_quota(block.tenant)

        def is_own(block: Block) -> bool:
            return block.key != request.parent and block.tenant == request.tenant

        slab = self._ledger.slabs.take()
        if slab is None and (self._ledger.evict(is_spare) or self._ledger.evict(is_own)):
            slab = self._ledger.slabs.take()
        return slab

    def _complete(self, reservation: Reservation) -> Block | None:
        """The reservation's block; None if it has ended."""
        block = self._tree.of_generation(reservation.generation)
        if block is None:
            self._ledger.counts.stale += 1
            self._ledger.slabs.settle(reservation.generation)
        return block

    def _remove(self, block: Block) -> None:
        self._ledger.remove(block, self._limits.quarantine_s)

    def _end_sessions(self, blocks: Iterable[Block]) -> None:
        for block in blocks:
            if self._tree.of_generation(block.generation) is not None:
                self._remove(block)  # else it went with a block before it

    def _new_generation(self) -> int:
        self._next_generation += 1
        return self._next_generation - 1

    def check_invariants(self) -> None:
        """Recompute the state from scratch and compare. For tests and idle debug runs."""
        places = [location for lease in self._leases for location in lease.locations]
        self._ledger.check_invariants(self._num_slabs, places)
        for block in self._tree:
            assert block.generation < self._next_generation, f"{block} is of the future"
