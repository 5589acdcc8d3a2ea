"""Reads records that are to be written again: in few requests, and always into the same memory.

A request costs the processor about as much as a block's bytes do, and new memory more than that.
"""

from collections.abc import Iterator, Sequence

from rtp_serve.kv_store.disk.pages import allocate, rounded_up
from rtp_serve.kv_store.disk.reader import DiskReader, ReadOutcome
from rtp_serve.kv_store.disk.record import Record
from rtp_serve.kv_store.disk.writer import BlockToStore

_ROOM_BYTES = 4 << 20


class RecordReader:
    """For one thread at a time."""

    def __init__(self, reader: DiskReader, room_bytes: int = _ROOM_BYTES) -> None:
        """So many bytes are read at once, or one block where that is larger."""
        self._reader = reader
        self._room = allocate(room_bytes)

    def read(self, records: Sequence[Record]) -> Iterator[BlockToStore]:
        """Those that are whole. Each has its bytes until the next is asked for."""
        first = 0
        while first < len(records):
            end = self._end_of_part(records, first)
            yield from self._read_part(records[first:end])
            first = end

    def _end_of_part(self, records: Sequence[Record], first: int) -> int:
        """Behind the last record that there is room for together with the first; that one there
        always is."""
        end, num_bytes = first, 0
        while end < len(records):
            num_bytes += rounded_up(records[end].location.num_bytes)
            if num_bytes > self._room.nbytes and end > first:
                break
            end += 1
        if end == first + 1 and num_bytes > self._room.nbytes:
            self._room = allocate(num_bytes)
        return end

    def _read_part(self, records: Sequence[Record]) -> Iterator[BlockToStore]:
        locations = [record.location for record in records]
        payloads, start = [], 0
        for location in locations:
            payloads.append(self._room[start : start + location.num_bytes])
            start += rounded_up(location.num_bytes)
        outcomes = self._reader.read(locations, payloads)
        for record, payload, outcome in zip(records, payloads, outcomes, strict=True):
            if outcome is ReadOutcome.HIT:
                yield BlockToStore(record.request, payload, record.location.checksum)
