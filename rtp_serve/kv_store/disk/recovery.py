"""What a segment holds, after whatever happened to it.

    1. Its header says how long its journal is. Without a header nothing can be said.
    2. The journal says which records there are.
    3. Where it says nothing, headers are looked for: page by page, from record to record.

A record that only step 3 knows may be one that a crash has torn, so its payload is read as well.
All others are checked by whoever reads them. Nothing here changes a file.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from rtp_serve.kv_store.disk.directory import DiskDirectory
from rtp_serve.kv_store.disk.file_io import FileIO, read_up_to
from rtp_serve.kv_store.disk.journal import read_entries
from rtp_serve.kv_store.disk.pages import PAGE_BYTES, allocate, rounded_up
from rtp_serve.kv_store.disk.record import HEADER_BYTES, Record, decode_header
from rtp_serve.kv_store.disk.segment import Segment, SegmentHeader, decode_page
from rtp_serve.kv_store.slab_header import checksum_of

_NOTHING = bytes(PAGE_BYTES)


@dataclass(frozen=True, slots=True)
class RecoveredSegment:
    """A segment that is in no index yet."""

    segment: Segment
    records: list[Record]
    """In the order in which they lie."""

    end: int
    """Of the last one."""

    num_bytes: int
    """Of the file."""


def recover_segment(number: int, directory: DiskDirectory, io: FileIO) -> RecoveredSegment | None:
    """None for a file that is no segment of this format. Raises OSError."""
    descriptor = directory.open_segment(number, os.O_RDONLY)
    try:
        num_bytes = io.status(directory.segment(number)).num_bytes
        return _Recovery(number, descriptor, num_bytes, io).run()
    finally:
        io.close(descriptor)


class _Recovery:
    """Of one open segment."""

    def __init__(self, number: int, descriptor: int, num_bytes: int, io: FileIO) -> None:
        self._number = number
        self._descriptor = descriptor
        self._io = io
        self._num_bytes = num_bytes
        self._page = allocate(PAGE_BYTES)

    def run(self) -> RecoveredSegment | None:
        self._read(self._page, 0)
        header = decode_page(self._page, self._number)
        if header is None or header.start > self._num_bytes:
            return None
        entries = list(read_entries(self._io, self._descriptor, header))
        known = {
            each.location.offset: each for each in entries if each and self._fits(each, header)
        }
        known.update((each.location.offset, each) for each in self._scan(header, known))
        records = [known[offset] for offset in sorted(known)]
        end = records[-1].location.end if records else header.start
        segment = Segment(header, num_entries=len(entries))
        return RecoveredSegment(segment, records, end, self._num_bytes)

    def _scan(self, header: SegmentHeader, known: dict[int, Record]) -> Iterator[Record]:
        """Records by their own headers, wherever the journal knows of none.

        A page that is no header is passed over: if a header was damaged, the next record is found.
        Behind all that is known, a page of zeros is where nothing was written.
        """
        last_known = max(known, default=0)
        position = header.start
        while position < self._num_bytes:
            record = known.get(position)
            if record is None:
                self._read(self._page, position)
                if position > last_known and self._page == _NOTHING:
                    return
                record = decode_header(bytes(self._page[:HEADER_BYTES]))
                if record is not None and self._is_whole(record, position, header):
                    yield record
                else:
                    record = None
            position = position + PAGE_BYTES if record is None else record.location.end

    def _fits(self, record: Record, header: SegmentHeader) -> bool:
        """Whether it can lie where it says."""
        location = record.location
        is_here = location.segment == self._number and location.offset % PAGE_BYTES == 0
        return is_here and header.start <= location.offset and location.end <= self._num_bytes

    def _is_whole(self, record: Record, position: int, header: SegmentHeader) -> bool:
        location = record.location
        if location.offset != position or not self._fits(record, header):
            return False
        payload = allocate(rounded_up(location.num_bytes))
        self._read(payload, location.offset + PAGE_BYTES)
        return checksum_of(payload[: location.num_bytes]) == location.checksum

    def _read(self, into: memoryview, position: int) -> None:
        """A file that ends early is one of zeros from there on."""
        num_read = read_up_to(self._io, self._descriptor, into, position)
        into[num_read:] = bytes(into.nbytes - num_read)
