"""A node's KV store: the index of the arena and the disk tier behind it, for all members.

    find       arena's blocks first, then the disk's that follow them
    complete   a block is READY in the arena ──► queue ──► disk, written beside

Every block goes to the disk soon after it came, so that the arena may drop blocks without a word
and a restart finds what it had. What the disk is too slow for is not written: a miss, later.

One process of the node has it, a KV-store actor or an engine that is alone; see `StoreClient`.
"""

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np

from rtp_serve.clock import Clock
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.arena import Arena
from rtp_serve.kv_store.client import (
    FetchedBlock,
    Found,
    StoreStats,
    TierNews,
    TierPosition,
)
from rtp_serve.kv_store.disk.record import DiskLocation
from rtp_serve.kv_store.disk.tier import DiskTier
from rtp_serve.kv_store.disk.writer import BlockToStore
from rtp_serve.kv_store.eviction_policy import EvictionPolicy
from rtp_serve.kv_store.index import BlockIndex, IndexLimits
from rtp_serve.kv_store.lease import Lease, Location
from rtp_serve.kv_store.member import is_dead, member_name
from rtp_serve.kv_store.pace import Pace
from rtp_serve.kv_store.pin_file import Pin, PinFile
from rtp_serve.kv_store.reservation import Refusal, Reservation, StoreRequest
from rtp_serve.kv_store.tier_counts import Tier

_SPILL_BLOCKS = 8
"""Written with one sync."""

_TICK_S = 1.0
"""How often the dead are looked for."""


class NodeStore:
    """A StoreClient for the process that owns the arena's index, and the logic behind others'."""

    def __init__(
        self,
        arena: Arena,
        epoch: int,
        policy: EvictionPolicy,
        clock: Clock,
        disk: DiskTier | None = None,
        limits: IndexLimits | None = None,
        quotas: Mapping[str, int] | None = None,
        pin_file: PinFile | None = None,
    ) -> None:
        """Takes over what the arena has, and starts a thread. `epoch` is what
        `ArenaMember.own` gave; `quotas` are slabs by tenant. Without a `pin_file` pins end with
        this process."""
        self._arena = arena
        self._clock = clock
        # The arena's epochs begin anew with its file.
        self._life = int(clock.wall() * 1000)
        self._disk = disk
        self._index = BlockIndex(
            arena.scan(),
            arena.geometry.slab_bytes,
            epoch,
            policy,
            arena,
            clock.monotonic(),
            limits,
            quotas,
        )
        self._pin_file = pin_file
        self._take_over_pins()
        self._to_spill: deque[tuple[StoreRequest, Lease]] = deque()
        # processes whose sequences decode
        self._decoding: set[str] = set()
        self._max_to_spill = max(1, arena.geometry.num_slabs // 2)
        self._owner = member_name()
        self._num_spilling = 0
        self._num_not_spilled = 0
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="kv-store", daemon=True)
        self._thread.start()

    def reserve(
        self, requests: Sequence[StoreRequest], owner: str
    ) -> tuple[Reservation | Refusal, ...]:
        with self._changed:
            return self._index.reserve(requests, owner, self._clock.monotonic())

    def complete(self, reservations: Sequence[Reservation]) -> tuple[bool, ...]:
        with self._changed:
            are_ready = self._index.complete(reservations)
            if self._disk is not None:
                for reservation, is_ready in zip(reservations, are_ready, strict=True):
                    # What came from the disk is there still.
                    if is_ready and not self._disk.has(reservation.request.key):
                        self._spill_later(reservation)
            return are_ready

    def abandon(self, reservations: Sequence[Reservation]) -> None:
        with self._changed:
            self._index.abandon(reservations)

    def find(self, chain: Sequence[BlockHash], owner: str) -> Found:
        with self._changed:
            lease = self._index.acquire(chain, owner, self._clock.monotonic())
            num_here = len(lease.locations)
            if self._disk is None:
                return Found(lease)
            return Found(lease, tuple(self._disk.lookup(chain, num_here)))

    def fetch(self, chain: Sequence[BlockHash]) -> Sequence[FetchedBlock]:
        """Nothing: this store is its node's own."""
        return ()

    def count(self, chain: Sequence[BlockHash]) -> int:
        """How many blocks the arena has of a chain, from its beginning."""
        with self._changed:
            return self._index.count_ready(chain)

    def read(self, chain: Sequence[BlockHash], owner: str) -> list[FetchedBlock]:
        """Copies of what the arena has of a chain, from its beginning, for another node."""
        found = self.find(chain, owner)
        blocks = []
        for location in found.lease.locations:
            seen = self._arena.view(location)
            if seen is None:
                break
            payload, checksum = seen
            blocks.append(FetchedBlock(np.frombuffer(payload, np.uint8).copy(), checksum))
        self.release(found.lease.lease_id)
        return blocks

    def release(self, lease_id: int) -> None:
        with self._changed:
            self._index.release(lease_id)

    def mismatch(self, location: Location | DiskLocation) -> None:
        if isinstance(location, DiskLocation):
            if self._disk is not None:
                self._disk.quarantine(location)
            return
        with self._changed:
            self._index.mismatch(location, self._clock.monotonic())

    def pin(self, chain: Sequence[BlockHash], owner: str, expires_s: float | None) -> int:
        with self._changed:
            if self._is_closed:  # the arena may be another's by now
                return 0
            num_pinned = self._index.pin(chain, owner, expires_s)
            if self._pin_file is not None and num_pinned:
                self._pin_file.write([Pin(*each) for each in self._index.pins()])
            return num_pinned

    def trim(self, num_bytes: int) -> int:
        with self._changed:
            return self._index.trim(num_bytes)

    def news(self, known: Mapping[Tier, TierPosition]) -> tuple[TierNews, ...]:
        with self._changed:
            tiers = [(Tier.HOST, self._index.news(self._since(Tier.HOST, known)))]
        if self._disk is not None:
            tiers.append((Tier.DISK, self._disk.news(self._since(Tier.DISK, known))))
        return tuple(
            TierNews(
                tier,
                self._since(tier, known) or 0,
                TierPosition(self._life, version),
                blocks,
            )
            for tier, (version, blocks) in tiers
            if blocks is not None
        )

    def _since(self, tier: Tier, known: Mapping[Tier, TierPosition]) -> int | None:
        position = known.get(tier)
        is_ours = position is not None and position.epoch == self._life
        return position.version if position is not None and is_ours else None

    def stats(self) -> StoreStats:
        with self._changed:
            geometry = self._arena.geometry
            return StoreStats(
                self._index.stats(),
                geometry.slab_bytes,
                geometry.num_slabs,
                self._disk.stats() if self._disk is not None else None,
                len(self._to_spill) + self._num_spilling,
                self._num_not_spilled,
            )

    def close(self) -> None:
        """Write what waits for the disk, and end."""
        with self._changed:
            if self._is_closed:
                return
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()
        if self._disk is not None:
            self._disk.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check_invariants(self) -> None:
        """For tests and idle debug runs."""
        with self._changed:
            self._index.check_invariants()

    def note_decoding(self, owner: str, is_decoding: bool) -> None:
        """See `StoreClient`."""
        with self._changed:
            if is_decoding:
                self._decoding.add(owner)
            else:
                self._decoding.discard(owner)
            self._changed.notify_all()

    def _take_over_pins(self) -> None:
        """Of blocks that are still there. What has run out is no pin any more."""
        now_s = self._clock.monotonic()
        for pin in self._pin_file.read() if self._pin_file is not None else ():
            if pin.expires_s is None or pin.expires_s > now_s:
                self._index.pin([pin.block], pin.owner, pin.expires_s)

    def _spill_later(self, reservation: Reservation) -> None:
        if len(self._to_spill) >= self._max_to_spill:
            self._num_not_spilled += 1
            return
        key = reservation.request.key
        location = Location(key, reservation.slab, reservation.generation)
        lease = self._index.hold([location], self._owner)
        self._to_spill.append((reservation.request, lease))
        self._changed.notify_all()

    def _leave_cores_alone(self, seconds: float) -> None:
        """Unless nobody decodes, or there is much to write."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._is_closed
                    or not self._decoding
                    or len(self._to_spill) > self._max_to_spill // 2
                ),
                seconds,
            )

    def _run(self) -> None:
        pace = Pace()
        tick_s = self._clock.monotonic()
        while True:
            with self._changed:
                if not (self._to_spill or self._is_closed):
                    self._changed.wait(_TICK_S)
                waiting = self._to_spill
                batch = [waiting.popleft() for _ in range(min(_SPILL_BLOCKS, len(waiting)))]
                self._num_spilling = len(batch)
                if not batch and self._is_closed:
                    return
            if batch:
                self._spill(batch)
                self._leave_cores_alone(pace.pause_s())
            now_s = self._clock.monotonic()
            if now_s >= tick_s:
                self.end_the_dead()
                tick_s = now_s + _TICK_S

    def _spill(self, batch: Sequence[tuple[StoreRequest, Lease]]) -> None:
        assert self._disk is not None, "nothing is to be written without a disk"
        blocks = []
        for request, lease in batch:
            for location in lease.locations:
                # A block may be taken back, or written over by who is late: the disk compares with
                # the checksum, and takes nothing else.
                seen = self._arena.view(location)
                if seen is not None:
                    blocks.append(BlockToStore(request, *seen))
        num_stored = sum(self._disk.put(blocks)) if blocks else 0
        with self._changed:
            for _, lease in batch:
                self._index.release(lease.lease_id)
            self._num_spilling = 0
            self._num_not_spilled += len(batch) - num_stored

    def end_the_dead(self) -> None:
        """Hold nothing for processes that are gone."""
        with self._changed:
            owners = self._index.owners() | self._decoding
        dead = [owner for owner in owners if is_dead(owner)]
        with self._changed:
            for owner in dead:
                self._index.owner_died(owner)
            self._decoding.difference_update(dead)
            self._index.reap(self._clock.monotonic())
