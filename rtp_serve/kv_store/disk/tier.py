"""The disk tier: blocks in append-only segments under a hard cap, found again after a restart.

    put ──► open segment ──full──► sealed segments ──emptiest──► given back
                ▲                                       │
                └──────── its blocks that are kept ─────┘

One process owns the directory: it puts, finds, gives back. Readers in any process take a location
from it and read by themselves (`reader.py`); what they say is wrong is looked at by `quarantine`.
Whatever the disk refuses is a miss or a block that is not kept, a count and one line in the log.

There is always room for one more segment, so that what is kept of a segment is written before it
goes. Which blocks are kept does not depend on where they lie (`index.py`): the least recently used
are let go until one segment has at most half of a segment's bytes to keep, and that one goes. So
what is written twice is never more than what is written once. A segment is cut to nothing before it
is unlinked: readers may have it open, and its space would stay taken as long as they do.
"""

import errno
import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

from rtp_serve.clock import Clock
from rtp_serve.errors import DiskUnavailable
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_cache.block_changes import BlockNews
from rtp_serve.kv_store.disk.directory import DiskDirectory
from rtp_serve.kv_store.disk.file_io import FileIO
from rtp_serve.kv_store.disk.health import Health, TierState
from rtp_serve.kv_store.disk.index import DiskIndex
from rtp_serve.kv_store.disk.pages import allocate, rounded_up
from rtp_serve.kv_store.disk.reader import DiskReader, ReadOutcome
from rtp_serve.kv_store.disk.record import DiskLocation, Record, record_bytes
from rtp_serve.kv_store.disk.record_reader import RecordReader
from rtp_serve.kv_store.disk.recovery import RecoveredSegment, recover_segment
from rtp_serve.kv_store.disk.segment import Segment, new_header
from rtp_serve.kv_store.disk.settings import DiskSettings
from rtp_serve.kv_store.disk.space import Space
from rtp_serve.kv_store.disk.stats import DiskCounts, DiskStats
from rtp_serve.kv_store.disk.writer import BlockToStore, SegmentWriter, Staging

_log = logging.getLogger(__name__)


class DiskTier:
    """The owner. `lookup`, which one thread calls, and `stats` never wait for the disk; the others
    exclude each other and may be called from any thread. None raises OSError."""

    def __init__(
        self, directory: Path, settings: DiskSettings, clock: Clock, io: FileIO | None = None
    ) -> None:
        """Find again what is there. Raises DiskUnavailable if another process owns the directory,
        or if it cannot be made or written."""
        self._settings = settings
        self._io = io or FileIO()
        self._directory = DiskDirectory(directory, self._io)
        self._reader = DiskReader(directory, self._io, num_requests=1)
        self._records = RecordReader(self._reader)
        self._health = Health(clock, settings.retry_s)
        self._space = Space(settings.max_bytes)
        self._index = DiskIndex()
        self._counts = DiskCounts()
        self._staging = Staging()
        self._writer: SegmentWriter | None = None
        self._next_number = 1
        self._is_closed = False
        self._changes = threading.Lock()
        self._lock = self._own()

    # Finding

    def lookup(self, chain: Sequence[BlockHash], start: int = 0) -> list[DiskLocation]:
        """The blocks that are there of a chain, from its `start`th on; those before it another tier
        gave, and their use counts here too. A `DiskReader` has their bytes, or says that they are
        not there any more."""
        if self._is_closed:
            return []
        found = self._index.find_prefix(chain, start)
        self._counts.hits += len(found)
        self._counts.misses += len(chain) - start - len(found)
        return found

    def has(self, key: BlockHash) -> bool:
        """Whether a block can be found; nobody has used it."""
        return key in self._index

    def quarantine(self, location: DiskLocation) -> bool:
        """A reader did not find there what the location says: whether that is so.

        If it is, the block is not found any more, and if the segment is gone, none that was in it.
        """
        with self._changes:
            record = self._index.find(location)
            if record is None or self._is_closed:
                return False
            outcome = self._read(record)
            if outcome is ReadOutcome.HIT:
                return False
            number = location.segment
            if outcome is ReadOutcome.GONE:
                self._counts.lost_segments += 1
                _log.warning("KV store on disk: segment %d is gone", number)
                self._give_back(self._index.segments[number])
            else:
                self._counts.mismatches += 1
                _log.warning("KV store on disk: %s of a block in segment %d", outcome, number)
                self._index.remove(record)
            return True

    # Storing

    def put(self, blocks: Sequence[BlockToStore]) -> tuple[bool, ...]:
        """Write those that are not there, a chain from its beginning: whether each can be found
        now."""
        with self._changes:
            if not self._is_closed and self._health.may_write():
                try:
                    self._write(blocks)
                except OSError as error:
                    self._fail(error)
            are_there = tuple(block.key in self._index for block in blocks)
            self._counts.refused += are_there.count(False)
            return are_there

    def trim(self, num_bytes: int) -> int:
        """Give back segments of at least so many bytes, the oldest first, whatever their blocks are
        worth; how many bytes those were."""
        with self._changes:
            before = self._space.file_bytes
            oldest_first = [] if self._is_closed else list(self._index.segments.values())
            for segment in oldest_first:
                if before - self._space.file_bytes >= num_bytes:
                    break
                self._give_back(segment)
            return before - self._space.file_bytes

    def close(self) -> None:
        """Give the directory up. From now on nothing is found and nothing taken."""
        with self._changes:
            if self._is_closed:
                return
            self._finish()
            self._is_closed = True
            self._reader.close()
            with suppress(OSError):
                self._io.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Telling

    def stats(self) -> DiskStats:
        """The present, and counts."""
        return DiskStats(
            TierState.CLOSED if self._is_closed else self._health.state,
            len(self._index),
            len(self._index.segments),
            self._index.live_bytes,
            self._space.used_bytes,
            self._space.max_bytes,
            self._health.num_errors,
            replace(self._counts),
        )

    def news(self, since: int | None) -> tuple[int, BlockNews | None]:
        """Of what can be found, see `DiskIndex.news`."""
        return self._index.news(since)

    # Starting

    def _own(self) -> int:
        """The descriptor that holds the lock."""
        path = self._directory.path
        try:
            lock = self._directory.lock()
        except BlockingIOError as error:
            raise DiskUnavailable(f"another process has the KV store in {path}") from error
        except OSError as error:
            raise DiskUnavailable(f"no KV store can be in {path}: {error}") from error
        try:
            numbers = self._directory.segments()
        except OSError as error:
            self._io.close(lock)
            raise DiskUnavailable(f"cannot list the KV store in {path}: {error}") from error
        for number in numbers:
            self._next_number = number + 1
            self._take_over(number)
        while not self._space.fits(self._settings.file_bytes) and self._index.segments:
            self._give_back(self._oldest())
        return lock

    def _take_over(self, number: int) -> None:
        """A segment that an owner before this one left; what cannot be read is of no use."""
        recovered: RecoveredSegment | None = None
        self._space.take(number, self._settings.file_bytes)
        with suppress(OSError):
            status = self._io.status(self._directory.segment(number))
            self._space.take(number, max(status.num_bytes, status.allocated_bytes))
            recovered = recover_segment(number, self._directory, self._io)
        if recovered is None:
            _log.warning("KV store on disk: file %d is no segment", number)
            self._counts.lost_segments += 1
            self._remove_file(number)
            return
        with suppress(OSError):
            self._io.truncate(self._directory.segment(number), recovered.end)
            self._space.take(number, recovered.end)
        self._index.add_segment(recovered.segment)
        for record in recovered.records:
            self._index.add(record)
        if not recovered.records:
            self._give_back(recovered.segment)

    # Writing

    def _write(self, blocks: Sequence[BlockToStore]) -> None:
        """Raises OSError; what was not committed is then lost."""
        largest = self._settings.file_bytes - new_header(0, self._settings.file_bytes).start
        taken: set[BlockHash] = set()
        for block in blocks:
            size = record_bytes(block.payload.nbytes)
            if block.key in self._index:
                self._index.use(block.key)
            elif block.key not in taken and size <= largest and block.is_whole:
                self._with_room(size).append(block)
                taken.add(block.key)
        self._commit()

    def _with_room(self, size: int) -> SegmentWriter:
        """The open segment, or a new one, with room for a record. Raises OSError."""
        while self._writer is None or self._writer.room < size:
            self._commit()
            self._finish()
            self._writer = self._create()
            self._keep_spare(self._writer)
        return self._writer

    def _commit(self) -> None:
        """What was appended can be found. Raises OSError."""
        committed = [] if self._writer is None else self._writer.commit()
        for record in reversed(committed):  # a block looks newer than those after it
            self._index.add(record)
            self._counts.written_bytes += record.location.record_bytes
        self._counts.stored += len(committed)
        if committed:
            self._health.succeeded()

    def _finish(self) -> None:
        """Seal the open segment; what was not committed is lost."""
        writer, self._writer = self._writer, None
        if writer is not None:
            self._space.take(writer.segment.number, writer.finish())
            if not writer.segment.records:
                self._give_back(writer.segment)

    def _fail(self, error: OSError) -> None:
        self._health.failed(error)
        self._finish()

    def _create(self) -> SegmentWriter:
        """A new segment. Others may have filled the disk: then it takes the emptiest one's place.

        Raises OSError, also if there is no room.
        """
        for number in self._space.segments - self._index.segments.keys():
            self._remove_file(number)
        if not self._has_room() and self._index.segments:
            self._give_back(self._emptiest())
        if not self._has_room():
            raise OSError(errno.ENOSPC, f"no room for a segment in {self._directory.path}")
        number, file_bytes = self._next_number, self._settings.file_bytes
        self._next_number += 1
        self._space.take(number, file_bytes)
        try:
            writer = SegmentWriter.create(
                number, file_bytes, self._directory, self._io, self._staging
            )
        except OSError:
            self._remove_file(number)
            raise
        self._index.add_segment(writer.segment)
        return writer

    def _has_room(self) -> bool:
        """For one more segment, under the cap and on the disk."""
        file_bytes = self._settings.file_bytes
        free_bytes = self._io.free_bytes(self._directory.path)
        return self._space.fits(file_bytes) and free_bytes - file_bytes >= (
            self._settings.min_free_bytes
        )

    # Giving back

    def _keep_spare(self, writer: SegmentWriter) -> None:
        """Give segments back until one more fits; what is kept of them, in all at most half of what
        there is room for, is written again. Raises OSError."""
        for_new_bytes = writer.room // 2
        while not self._space.fits(self._settings.file_bytes):
            if len(self._index.segments) == 1:
                raise OSError(errno.ENOSPC, "segments that were given back are still there")
            max_bytes = writer.room - for_new_bytes
            while (emptiest := self._emptiest()).kept_bytes > max_bytes:
                self._index.let_go_oldest()
            self._rewrite(self._index.kept(emptiest, max_bytes), writer)
            self._give_back(emptiest)

    def _rewrite(self, records: Sequence[Record], writer: SegmentWriter) -> None:
        """Raises OSError."""
        num_kept = 0
        for block in self._records.read(records):
            writer.append(block)
            num_kept += 1
        self._commit()
        self._counts.stored -= num_kept
        self._counts.rewritten += num_kept

    def _read(self, record: Record) -> ReadOutcome:
        num_bytes = record.location.num_bytes
        payload = allocate(rounded_up(num_bytes))[:num_bytes]
        (outcome,) = self._reader.read([record.location], [payload])
        return outcome

    def _emptiest(self) -> Segment:
        """Of the sealed ones, of which there is one: that with the least to keep."""
        open_one = self._writer.segment if self._writer is not None else None
        sealed = (each for each in self._index.segments.values() if each is not open_one)
        return min(sealed, key=lambda each: each.kept_bytes)

    def _oldest(self) -> Segment:
        """Of at least one."""
        return next(iter(self._index.segments.values()))

    def _give_back(self, segment: Segment) -> None:
        """It and all blocks that are in it, be it open or sealed."""
        if self._writer is not None and self._writer.segment is segment:
            self._writer.finish()
            self._writer = None
        self._counts.evictions += self._index.remove_segment(segment.number)
        self._remove_file(segment.number)

    def _remove_file(self, number: int) -> None:
        """If the disk does not let it go, it stays counted, and is removed another time."""
        path = self._directory.segment(number)
        with suppress(OSError):
            self._io.truncate(path, 0)
        try:
            self._io.unlink(path)
        except FileNotFoundError:
            pass
        except OSError:
            return
        self._space.give_back(number)

    def check_invariants(self) -> None:
        """Recompute the state from scratch and compare; what the disk has is not more than what is
        counted. For tests."""
        self._index.check_invariants()
        numbers = set(self._directory.segments())
        assert numbers <= self._space.segments, f"files {numbers} are not all counted"
        assert self._index.segments.keys() <= self._space.segments, "a segment is not counted"
        used = sum(path.stat().st_blocks * 512 for path in self._directory.path.iterdir())
        used += self._directory.path.stat().st_blocks * 512
        assert used <= self._space.used_bytes, f"{used} bytes are counted {self._space.used_bytes}"
        assert self._is_closed or self._space.used_bytes <= self._space.max_bytes, "over the cap"
