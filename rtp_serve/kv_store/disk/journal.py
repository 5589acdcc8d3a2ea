"""The index journal of a segment: a copy of each record's header, close together.

It lies in the segment that it describes: it goes when the segment goes, so it never needs to be
compacted, and its space is taken with the segment's. It saves time at a start and nothing depends
on it: what it does not cover is found by the records' own headers. An entry is written when its
record is on disk; it reaches the disk with the next sync.
"""

from collections.abc import Iterator, Sequence

from rtp_serve.kv_store.disk.file_io import FileIO, read_up_to, write_all
from rtp_serve.kv_store.disk.pages import PAGE_BYTES, allocate, rounded_up
from rtp_serve.kv_store.disk.record import HEADER_BYTES, Record, decode_header, encode_header
from rtp_serve.kv_store.disk.segment import Segment, SegmentHeader

_UNWRITTEN = bytes(HEADER_BYTES)
_PIECE_BYTES = 32 * PAGE_BYTES


class Journal:
    """Of a new segment. What it has is kept in memory too: the disk takes whole pages."""

    def __init__(self, io: FileIO, descriptor: int, segment: Segment) -> None:
        """Nothing is written yet."""
        self._io = io
        self._descriptor = descriptor
        self._segment = segment
        self._pages = allocate(max(PAGE_BYTES, segment.header.journal_bytes))

    def append(self, records: Sequence[Record]) -> None:
        """Write as many entries as fit. Raises OSError, and then they may be there or not."""
        segment = self._segment
        room = segment.header.journal_bytes // HEADER_BYTES - segment.num_entries
        data = b"".join(encode_header(record) for record in records[:room])
        if not data:
            return
        start = segment.num_entries * HEADER_BYTES
        end = start + len(data)
        self._pages[start:end] = data
        first_page = start // PAGE_BYTES * PAGE_BYTES
        changed = self._pages[first_page : rounded_up(end)]
        write_all(self._io, self._descriptor, changed, PAGE_BYTES + first_page)
        segment.num_entries += len(data) // HEADER_BYTES


def read_entries(io: FileIO, descriptor: int, header: SegmentHeader) -> Iterator[Record | None]:
    """Up to the first that was never written; None for one that is no header. Raises OSError."""
    for position in range(0, header.journal_bytes, _PIECE_BYTES):
        piece = allocate(min(_PIECE_BYTES, header.journal_bytes - position))
        read_up_to(io, descriptor, piece, PAGE_BYTES + position)
        for start in range(0, piece.nbytes, HEADER_BYTES):
            entry = bytes(piece[start : start + HEADER_BYTES])
            if entry == _UNWRITTEN:
                return
            yield decode_header(entry)
