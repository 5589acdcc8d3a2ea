"""Appends records to one new segment: staged, written in large pieces, synced, journaled, in turn.

    append ──► staging buffer ──► file      a record is known to nobody
    commit ──► rest, fdatasync, journal     from here on it can be handed out
    finish ──► the file is cut off behind its last committed record

After an error the segment takes nothing more: what the disk has of the uncommitted part is unknown,
and a sync that failed once may lie the next time.
"""

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.disk.directory import DiskDirectory
from rtp_serve.kv_store.disk.file_io import FileIO, write_all
from rtp_serve.kv_store.disk.journal import Journal
from rtp_serve.kv_store.disk.pages import allocate, rounded_up
from rtp_serve.kv_store.disk.record import DiskLocation, Record, encode_header, record_bytes
from rtp_serve.kv_store.disk.segment import Segment, encode_page, new_header
from rtp_serve.kv_store.disk.settings import METADATA_BYTES
from rtp_serve.kv_store.reservation import StoreRequest
from rtp_serve.kv_store.slab_header import checksum_of


@dataclass(frozen=True, slots=True)
class BlockToStore:
    """A block as the arena has it. Its bytes are read during the call that takes it."""

    request: StoreRequest
    payload: memoryview
    """Not empty. It may lie where others write, in the arena."""

    checksum: bytes
    """Of the bytes that the key means, as `checksum_of` has it: what the arena's header says."""

    def __post_init__(self) -> None:
        assert self.payload.nbytes > 0, "an empty payload"
        assert len(self.checksum) == 16, f"a checksum of {len(self.checksum)} bytes"

    @property
    def key(self) -> BlockHash:
        return self.request.key

    @property
    def is_whole(self) -> bool:
        """Whether the payload is what the key means."""
        return checksum_of(self.payload) == self.checksum


class Staging:
    """Bytes on their way to a file, in pieces that a disk takes at its full rate."""

    def __init__(self, num_bytes: int = 4 << 20) -> None:
        """`num_bytes` are whole pages."""
        self._buffer = allocate(num_bytes)
        self._filled = 0

    def clear(self) -> None:
        self._filled = 0

    def add(self, data: memoryview, write: Callable[[memoryview], None]) -> None:
        """Take `data` and zeros up to a page; `write` gets full pieces, in order."""
        num_zeros = rounded_up(data.nbytes) - data.nbytes
        while data.nbytes:
            part = data[: self._buffer.nbytes - self._filled]
            self._buffer[self._filled : self._filled + part.nbytes] = part
            self._filled += part.nbytes
            data = data[part.nbytes :]
            if self._filled == self._buffer.nbytes:
                self.flush(write)
        self._buffer[self._filled : self._filled + num_zeros] = bytes(num_zeros)
        self._filled += num_zeros
        if self._filled == self._buffer.nbytes:
            self.flush(write)

    def flush(self, write: Callable[[memoryview], None]) -> None:
        """Hand over the rest."""
        filled, self._filled = self._filled, 0
        if filled:
            write(self._buffer[:filled])


class SegmentWriter:
    """The open segment. Its methods raise OSError but for `finish`."""

    def __init__(
        self,
        segment: Segment,
        descriptor: int,
        file_bytes: int,
        directory: DiskDirectory,
        io: FileIO,
        staging: Staging,
    ) -> None:
        """Of a file that `create` made."""
        self.segment = segment
        self._descriptor = descriptor
        self._file_bytes = file_bytes
        self._directory = directory
        self._io = io
        self._staging = staging
        self._written = self._end = self._committed_end = segment.header.start
        self._pending: list[Record] = []
        self._journal = Journal(io, descriptor, segment)
        staging.clear()

    @classmethod
    def create(
        cls, number: int, file_bytes: int, directory: DiskDirectory, io: FileIO, staging: Staging
    ) -> "SegmentWriter":
        """Reserve a whole segment and write its header. After an OSError there may be a file."""
        descriptor = directory.open_segment(number, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        header = new_header(number, file_bytes)
        try:
            io.reserve(descriptor, 0, file_bytes)
            allocated = io.status(directory.segment(number)).allocated_bytes
            if allocated > file_bytes + METADATA_BYTES:
                raise OSError(errno.ENOSPC, f"{file_bytes} bytes take {allocated} on this disk")
            write_all(io, descriptor, encode_page(header), 0)
            io.sync_directory(directory.path)
        except OSError:
            with suppress(OSError):
                io.close(descriptor)
            raise
        return cls(Segment(header), descriptor, file_bytes, directory, io, staging)

    @property
    def room(self) -> int:
        """Bytes that records can still take."""
        return self._file_bytes - self._end

    def append(self, block: BlockToStore) -> None:
        """Stage a record, for which there must be room. It is on disk after `commit`."""
        payload = block.payload.cast("B")
        assert record_bytes(payload.nbytes) <= self.room, f"{payload.nbytes} bytes do not fit"
        location = DiskLocation(
            block.key, self.segment.number, self._end, payload.nbytes, block.checksum
        )
        record = Record(block.request, location)
        self._end = location.end
        self._pending.append(record)
        self._staging.add(memoryview(encode_header(record)), self._write)
        self._staging.add(payload, self._write)

    def commit(self) -> list[Record]:
        """Everything appended since the last time, now on disk and in the journal."""
        if not self._pending:
            return []
        self._staging.flush(self._write)
        self._io.sync(self._descriptor)
        self._journal.append(self._pending)
        committed, self._pending = self._pending, []
        self._committed_end = self._end
        return committed

    def finish(self) -> int:
        """Give back what no committed record needs; how long the file is at most. All that somebody
        may look for was synced before."""
        self._staging.clear()
        num_bytes = self._file_bytes
        with suppress(OSError):
            self._io.truncate(self._directory.segment(self.segment.number), self._committed_end)
            num_bytes = self._committed_end
        with suppress(OSError):
            self._io.close(self._descriptor)
        return num_bytes

    def _write(self, piece: memoryview) -> None:
        write_all(self._io, self._descriptor, piece, self._written)
        self._written += piece.nbytes
