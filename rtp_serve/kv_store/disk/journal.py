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


def append_entries(
    io: FileIO, descriptor: int, segment: Segment, records: Sequence[Record]
) -> None:
    """Write as many entries as fit. Raises OSError, and then they may be there or not."""
    room = segment.header.journal_bytes // HEADER_BYTES - segment.num_entries
    data = b"".join(encode_header(record) for record in records[:room])
    if not data:
        return
    start = segment.num_entries * HEADER_BYTES
    first_page = start // PAGE_BYTES * PAGE_BYTES
    pages = allocate(rounded_up(start + len(data)) - first_page)
    read_up_to(io, descriptor, pages[:PAGE_BYTES], PAGE_BYTES + first_page)
    pages[start - first_page :][: len(data)] = data
    write_all(io, descriptor, pages, PAGE_BYTES + first_page)
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
