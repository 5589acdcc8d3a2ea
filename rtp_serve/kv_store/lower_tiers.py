"""An engine's way to the tiers below its device: two threads beside the steps.

    restore    find ──► arena, then disk, then another node ──copy──► device blocks that wait
    store      device blocks ──copy──► arena            little by little, and only so many

The engine's thread says what and where, and hears at a later step what came of it. Until then the
device blocks are the job's: nobody else writes them. A job never fails; it moves fewer blocks.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from rtp_serve.clock import Clock
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.arena import Arena
from rtp_serve.kv_store.client import StoreClient, StoreStats, TierNews, TierPosition
from rtp_serve.kv_store.device_blocks import DeviceBlocks
from rtp_serve.kv_store.disk.reader import DiskReader, ReadOutcome
from rtp_serve.kv_store.disk.record import DiskLocation
from rtp_serve.kv_store.lease import Location
from rtp_serve.kv_store.member import member_name
from rtp_serve.kv_store.pace import Pace
from rtp_serve.kv_store.reservation import Reservation, StoreRequest
from rtp_serve.kv_store.slab_header import checksum_of
from rtp_serve.kv_store.tier_counts import Tier, TierCounts
from rtp_serve.kv_store.transfer_rate import TransferRate

STORE_BLOCKS = 8
"""Of a job that stores, at most: they are reserved and completed at once, and found after that."""

_COPIED_BLOCKS = 32
"""Copied from the arena at once, without the interpreter lock. What is behind one that is not whole
was then copied in vain."""

_STORED_BLOCKS = 4
"""Copied to the arena at once, and then the cores are left alone. Around each call there is as much
Python as two blocks take to copy."""

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Restore:
    """A chain of which the device lacks the end, and the device blocks that are to be filled.

    The whole chain is asked for, so that the tiers know what is in use.
    """

    chain: tuple[BlockHash, ...]

    num_cached: int
    """What the device has of it, from its beginning."""

    block_ids: tuple[int, ...]
    """For the others."""

    recompute_s: float
    """What computing one of them would take; 0 if that is not known."""

    num_in_arena: int = 0
    """What the arena has of the chain."""

    num_host: int = 0
    """Filled from the arena, the first ones."""

    num_left: int = 0
    """Those after them, left to be computed meanwhile: when the engine hears of it (see
    `take_finished`), their device blocks are the job's no more."""

    num_disk: int = 0
    """Filled from the disk, those after them."""

    num_remote: int = 0
    """Filled from another node, the last ones."""

    @property
    def num_filled(self) -> int:
        return self.num_host + self.num_disk + self.num_remote

    @property
    def tail(self) -> int:
        """Where in the chain the blocks are that are filled while those before are computed."""
        return self.num_cached + self.num_host + self.num_left

    @property
    def end(self) -> int:
        """Up to where the device has the chain when all that was left is computed."""
        return self.num_cached + self.num_left + self.num_filled


@dataclass(frozen=True, slots=True, eq=False)
class Store:
    """Device blocks to be kept, parents first. They do not change while the job goes on."""

    requests: tuple[StoreRequest, ...]
    block_ids: tuple[int, ...]


Job = TypeVar("Job", Restore, Store)


@dataclass(frozen=True, slots=True)
class StoreAccess:
    """What a process has of its node's store."""

    arena: Arena
    client: StoreClient
    name: str
    """The store's: processes that share it say the same, and no others."""

    disk: Path | None = None
    """The disk tier's directory; None without one."""

    has_remote: bool = False
    """Whether other nodes are asked for what this one has not."""

    on_close: Callable[[], None] = field(default=lambda: None)
    """Leaves the store, when all jobs have ended."""


class LowerTiers:
    """The jobs of one engine."""

    def __init__(
        self,
        access: StoreAccess,
        device: DeviceBlocks,
        clock: Clock,
        max_storing: int,
    ) -> None:
        """Starts the threads. `max_storing` blocks at most may wait to be stored."""
        self._access = access
        self._reader = DiskReader(access.disk) if access.disk is not None else None
        self._device = device
        self._clock = clock
        self._max_storing = max_storing
        self._owner = member_name()
        self._rates = {tier: TransferRate() for tier in Tier}
        self.counts = {tier: TierCounts() for tier in Tier}
        self._restores: deque[Restore] = deque()
        self._stores: deque[Store] = deque()
        self._num_storing = 0
        self._finished: deque[Restore | Store] = deque()
        # What changes tells those alone who wait for it: a thread that wakes takes a core.
        self._lock = threading.Lock()
        self._has_restores = threading.Condition(self._lock)
        self._may_store = threading.Condition(self._lock)
        self._has_finished = threading.Condition(self._lock)
        self._is_closed = False
        self._is_in_hurry = True
        self._is_decoding = False
        self._num_expected = 0
        self._threads = [
            threading.Thread(target=self._run_restores, name="kv-restore", daemon=True),
            threading.Thread(target=self._run_stores, name="kv-write-back", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def store_name(self) -> str:
        return self._access.name

    @property
    def num_storing(self) -> int:
        """Blocks that are on their way to the arena, or wait for it."""
        return self._num_storing

    def store_stats(self) -> StoreStats:
        """Of the node's store. This one, `trim` and `pin` wait for it, in any thread."""
        return self._access.client.stats()

    def news(self, known: Mapping[Tier, TierPosition]) -> tuple[TierNews, ...]:
        """See `StoreClient.news`; waits for the store, too."""
        return self._access.client.news(known)

    def trim(self, num_bytes: int) -> int:
        """See `StoreClient.trim`."""
        return self._access.client.trim(num_bytes)

    def pin(self, chain: Sequence[BlockHash], ttl_s: float) -> int:
        """Keep what is there of a chain in the arena for so long, whoever lives; how many blocks
        that are. The pins are the application's, which has the store's name."""
        expires_s = self._clock.monotonic() + ttl_s
        return self._access.client.pin(chain, self._access.name, expires_s)

    def restore(self, job: Restore) -> None:
        """Begin; `take_finished` gives it back."""
        with self._lock:
            self._restores.append(job)
            self._has_restores.notify()

    def store(self, requests: Sequence[StoreRequest], block_ids: Sequence[int]) -> Store | None:
        """Begin to store blocks, parents first, and `take_finished` gives the job back. It has as
        many of the first blocks as may wait; None if there is none."""
        with self._lock:
            room = min(self._max_storing - self._num_storing, len(block_ids))
            self.counts[Tier.HOST].not_stored += len(block_ids) - room
            if not room:
                return None
            job = Store(tuple(requests[:room]), tuple(block_ids[:room]))
            self._num_storing += room
            self._stores.append(job)
            self._may_store.notify()
            return job

    def set_pace(self, is_in_hurry: bool, num_expected: int = 0) -> None:
        """Whether blocks are to be stored as fast as that goes, or beside a step that will bring up
        to so many: then little by little, as long as there is room for them."""
        with self._lock:
            self._is_in_hurry, self._num_expected = is_in_hurry, num_expected
            if self._has_to_hurry():
                self._may_store.notify()

    def set_decoding(self, is_decoding: bool) -> None:
        """Whether sequences decode, beside which the disk is written little by little."""
        if self._is_decoding is not is_decoding:
            self._is_decoding = is_decoding
            self._access.client.note_decoding(self._owner, is_decoding)

    def take_finished(self) -> list[Restore | Store]:
        """Jobs that have ended since the last call. A restore that leaves blocks to be computed is
        there twice: before, when all up to those is filled, it goes on with what is after them."""
        if not self._finished:
            return []
        with self._lock:
            finished = list(self._finished)
            self._finished.clear()
            return finished

    def wait(self, timeout_s: float) -> None:
        """Until a job has ended, or leaves blocks to be computed."""
        with self._has_finished:
            self._has_finished.wait_for(lambda: self._finished or self._is_closed, timeout_s)

    def close(self) -> None:
        """Store what is to be stored, end the restore under way, and give up those not begun."""
        with self._lock:
            self._is_closed = True
            for changed in (self._has_restores, self._may_store, self._has_finished):
                changed.notify_all()
        for thread in self._threads:
            thread.join()
        if self._reader is not None:
            self._reader.close()
        self._access.on_close()

    def _run(
        self,
        jobs: deque[Job],
        changed: threading.Condition,
        move: Callable[[Job], None],
        rest: Callable[[], None] = lambda: None,
    ) -> None:
        while (job := self._next(jobs, changed)) is not None:
            try:
                move(job)
            except (
                Exception
            ):  # the thread's top: a sequence waits for the job, and computes what it has not
                _log.exception("moving KV blocks failed")
            self._finish(job)
            rest()

    def _next(self, jobs: deque[Job], changed: threading.Condition) -> Job | None:
        with changed:
            changed.wait_for(lambda: jobs or self._is_closed)
            if self._is_closed and jobs is self._restores:
                return None
            return jobs.popleft() if jobs else None

    def _finish(self, job: Restore | Store) -> None:
        with self._lock:
            if isinstance(job, Store):
                self._num_storing -= len(job.block_ids)
            self._finished.append(job)
            self._has_finished.notify_all()

    def _run_restores(self) -> None:
        self._run(self._restores, self._has_restores, self._restore)

    def _restore(self, job: Restore) -> None:
        started_s = self._clock.monotonic()
        found = self._access.client.find(job.chain, self._owner)
        job.num_in_arena = len(found.lease.locations)
        in_arena = found.lease.locations[job.num_cached :]
        on_disk = found.on_disk[max(0, job.num_cached - job.num_in_arena) :]
        if self._reader is None:  # the store was opened with a disk, this engine without
            on_disk = ()
        if self._is_worth(Tier.HOST, job, len(in_arena)):
            self._from_host(job, in_arena)
            self._note(Tier.HOST, job.num_host, started_s)
        if job.num_in_arena:
            self._access.client.release(found.lease.lease_id)
        if job.num_host == len(in_arena) and self._is_worth(Tier.DISK, job, len(on_disk)):
            self._leave_head(job, len(on_disk))
            started_s = self._clock.monotonic()
            self._from_disk(job, on_disk[job.num_left :])
            self._note(Tier.DISK, job.num_disk, started_s)
        is_all_filled = job.num_filled == len(in_arena) + len(on_disk)
        num_missing = len(job.block_ids) - job.num_filled
        if (
            self._access.has_remote
            and is_all_filled
            and self._is_worth(Tier.REMOTE, job, num_missing)
        ):
            started_s = self._clock.monotonic()
            self._from_remote(job)
            self._note(Tier.REMOTE, job.num_remote, started_s)

    def _is_worth(self, tier: Tier, job: Restore, num_blocks: int) -> bool:
        recompute_s = job.recompute_s * num_blocks
        return num_blocks > 0 and self._rates[tier].is_worth(num_blocks, recompute_s)

    def _leave_head(self, job: Restore, num_blocks: int) -> None:
        """Of what the disk has: as many blocks as the engine computes while the others come."""
        num_left = self._rates[Tier.DISK].num_to_compute(num_blocks, job.recompute_s)
        if num_left:
            job.num_left = num_left
            self._finish(job)

    def _from_host(self, job: Restore, locations: Sequence[Location]) -> None:
        for first in range(0, len(locations), _COPIED_BLOCKS):
            part = locations[first : first + _COPIED_BLOCKS]
            block_ids = job.block_ids[first : first + len(part)]
            filled = self._access.arena.read_into(part, list(map(self._device.room, block_ids)))
            for block_id, block in zip(block_ids, filled, strict=False):
                self._device.fill(block_id, block)
            job.num_host += len(filled)
            if len(filled) < len(part):
                self.counts[Tier.HOST].mismatches += 1
                self._access.client.mismatch(part[len(filled)])
                return

    def _from_disk(self, job: Restore, locations: Sequence[DiskLocation]) -> None:
        assert self._reader is not None, "there is no disk to read from"
        block_ids = job.block_ids[job.tail - job.num_cached :][: len(locations)]
        rooms = [self._device.room(block_id) for block_id in block_ids]
        outcomes = self._reader.read(locations, rooms)
        for index, outcome in enumerate(outcomes):
            if outcome is not ReadOutcome.HIT:
                self.counts[Tier.DISK].mismatches += 1
                self._access.client.mismatch(locations[index])
                return
            self._device.fill(block_ids[index], rooms[index])
            job.num_disk += 1

    def _from_remote(self, job: Restore) -> None:
        first = job.num_filled
        rest = job.chain[job.num_cached + first :]
        for fetched, block_id in zip(
            self._access.client.fetch(rest), job.block_ids[first:], strict=False
        ):
            room = self._device.room(block_id)
            if fetched.payload.nbytes != room.nbytes:
                return
            np.copyto(np.frombuffer(room, np.uint8), fetched.payload)
            if checksum_of(room) != fetched.checksum:
                self.counts[Tier.REMOTE].mismatches += 1
                return
            self._device.fill(block_id, room)
            job.num_remote += 1

    def _note(self, tier: Tier, num_blocks: int, started_s: float) -> None:
        if num_blocks:
            elapsed_s = self._clock.monotonic() - started_s
            self._rates[tier].observe(num_blocks, elapsed_s)
            self.counts[tier].restored += num_blocks
            self.counts[tier].restore_s += elapsed_s

    def _has_to_hurry(self) -> bool:
        has_room = self._num_storing + self._num_expected <= self._max_storing
        return self._is_closed or self._is_in_hurry or not has_room

    def _run_stores(self) -> None:
        pace = Pace()

        def rest() -> None:
            with self._may_store:
                self._may_store.wait_for(self._has_to_hurry, pace.pause_s())

        self._run(self._stores, self._may_store, lambda job: self._store(job, rest), rest)

    def _store(self, job: Store, rest: Callable[[], None]) -> None:
        """Resting between its pieces."""
        answers = self._access.client.reserve(job.requests, self._owner)
        pairs = zip(answers, job.block_ids, strict=True)
        reserved = [
            (answer, block_id) for answer, block_id in pairs if isinstance(answer, Reservation)
        ]
        written: list[Reservation] = []
        not_written: list[Reservation] = []
        for first in range(0, len(reserved), _STORED_BLOCKS):
            if first:
                rest()
            part = reserved[first : first + _STORED_BLOCKS]
            reservations = [reservation for reservation, _ in part]
            blocks = [self._device.read(block_id) for _, block_id in part]
            are_written = self._access.arena.put(reservations, blocks, self._clock.monotonic())
            for reservation, is_written in zip(reservations, are_written, strict=True):
                (written if is_written else not_written).append(reservation)
        if written:
            self.counts[Tier.HOST].stored += sum(self._access.client.complete(written))
        if not_written:
            self._access.client.abandon(not_written)
