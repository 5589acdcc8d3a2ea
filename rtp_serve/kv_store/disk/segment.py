"""A segment: one file, reserved whole when it is made, appended to, and given back whole.

    0        header: magic, version, segment, length of the journal, digest; zeros
    4096     journal: what each record's header says, zeros where there is none yet (`journal.py`)
    start    records, one after the other, each from a page boundary on (`record.py`)
    end      nothing: who finishes a segment cuts it off behind its last record

Numbers grow. Bytes once synced are never written again, but for the journal's.
"""

import struct
from dataclasses import dataclass, field

import xxhash

from rtp_serve.kv_store.disk.pages import PAGE_BYTES, allocate, rounded_up
from rtp_serve.kv_store.disk.record import FORMAT_VERSION, HEADER_BYTES, Record

_MAGIC = b"RTPKVSEG"
_FIELDS = struct.Struct("<8sQQQ")
"""Magic, version, segment, bytes of the journal."""

_DIGEST = struct.Struct("<Q")
_BYTES_PER_ENTRY = 32 << 10
"""Of a segment, for each entry of its journal. Smaller records are found by their own headers once
the journal is full."""


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What a segment says of itself."""

    number: int
    journal_bytes: int

    @property
    def start(self) -> int:
        """Of the first record."""
        return PAGE_BYTES + self.journal_bytes


@dataclass(slots=True)
class Segment:
    """The owner's view of one segment."""

    header: SegmentHeader
    num_entries: int = 0
    """In the journal."""

    records: dict[int, Record] = field(default_factory=dict)
    """Those that can be found, by offset."""

    kept_bytes: int = 0
    """Of those that are to be written again before the segment goes, see `DiskIndex`."""

    @property
    def number(self) -> int:
        return self.header.number


def new_header(number: int, file_bytes: int) -> SegmentHeader:
    """Of a file of this length."""
    return SegmentHeader(number, rounded_up(file_bytes // _BYTES_PER_ENTRY * HEADER_BYTES))


def encode_page(header: SegmentHeader) -> memoryview:
    """The segment's first page."""
    fields = _FIELDS.pack(_MAGIC, FORMAT_VERSION, header.number, header.journal_bytes)
    raw = fields + _DIGEST.pack(xxhash.xxh3_64_intdigest(fields))
    page = allocate(PAGE_BYTES)
    page[: len(raw)] = raw
    return page


def decode_page(page: memoryview, number: int) -> SegmentHeader | None:
    """None if this is not the first page of that segment."""
    fields, (digest,) = bytes(page[: _FIELDS.size]), _DIGEST.unpack_from(page, _FIELDS.size)
    magic, version, own, journal_bytes = _FIELDS.unpack(fields)
    if digest != xxhash.xxh3_64_intdigest(fields):
        return None
    if (magic, version, own) != (_MAGIC, FORMAT_VERSION, number):
        return None
    return SegmentHeader(number, journal_bytes)
