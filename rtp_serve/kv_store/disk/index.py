"""Which blocks can be found, and in which segment each is. Knows nothing of files.

    key ──► Record ◄── Segment.records[offset]      always both or neither

A key has one record. Lookups may come from another thread than changes do.
"""

import threading
from collections.abc import Iterable

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.disk.record import DiskLocation, Record
from rtp_serve.kv_store.disk.segment import Segment

_MAX_USES = 3


class DiskIndex:
    """Segments by number, the oldest first, and records by key."""

    def __init__(self) -> None:
        self.segments: dict[int, Segment] = {}
        self.live_bytes = 0
        self._lock = threading.Lock()
        self._by_key: dict[BlockHash, Record] = {}
        self._uses: dict[BlockHash, int] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def __contains__(self, key: BlockHash) -> bool:
        return key in self._by_key

    def find(self, location: DiskLocation) -> Record | None:
        """None if the block is not there, or not any more."""
        record = self._by_key.get(location.key)
        return record if record is not None and record.location == location else None

    def find_prefix(self, chain: Iterable[BlockHash]) -> list[DiskLocation]:
        """Of the blocks that are here of a chain, from its beginning; it is a use of each."""
        found: list[DiskLocation] = []
        with self._lock:
            for key in chain:
                record = self._by_key.get(key)
                if record is None:
                    break
                self._use(key)
                found.append(record.location)
        return found

    def use(self, key: BlockHash) -> None:
        """Note a use of a block, if it is here."""
        with self._lock:
            if key in self._by_key:
                self._use(key)

    def uses(self, record: Record) -> int:
        """How often it was found since it was written, counted up to 3."""
        return self._uses.get(record.key, 0)

    def add_segment(self, segment: Segment) -> None:
        """Newer than all others, and without records."""
        assert not segment.records, f"{len(segment.records)} records come with {segment.number}"
        self.segments[segment.number] = segment

    def add(self, record: Record) -> None:
        """Of a segment that is here. An older record of the same block is not found any more."""
        with self._lock:
            self._forget(record.key)
            self._by_key[record.key] = record
            self.segments[record.location.segment].records[record.location.offset] = record
            self.live_bytes += record.location.record_bytes

    def remove(self, record: Record) -> None:
        """It is not found any more."""
        with self._lock:
            assert self._by_key[record.key] is record, f"{record} is not the one that is found"
            self._forget(record.key)

    def remove_segment(self, number: int) -> int:
        """And all records that are in it; how many those were."""
        with self._lock:
            records = list(self.segments[number].records.values())
            for record in records:
                self._forget(record.key)
            del self.segments[number]
        return len(records)

    def _use(self, key: BlockHash) -> None:
        self._uses[key] = min(self._uses.get(key, 0) + 1, _MAX_USES)

    def _forget(self, key: BlockHash) -> None:
        record = self._by_key.pop(key, None)
        self._uses.pop(key, None)
        if record is not None:
            del self.segments[record.location.segment].records[record.location.offset]
            self.live_bytes -= record.location.record_bytes

    def check_invariants(self) -> None:
        """Recompute the state from scratch and compare."""
        assert list(self.segments) == sorted(self.segments), "segments are out of order"
        found: dict[BlockHash, Record] = {}
        for number, segment in self.segments.items():
            end = segment.header.start
            for offset, record in sorted(segment.records.items()):
                location = record.location
                assert (location.segment, location.offset) == (number, offset), f"{record} strayed"
                assert end <= offset, f"{record} lies over the one before it"
                assert record.key not in found, f"{record.key.hex()} has two records"
                end = location.end
                found[record.key] = record
        assert found == self._by_key, "segments and keys disagree"
        live_bytes = sum(record.location.record_bytes for record in found.values())
        assert live_bytes == self.live_bytes, f"{self.live_bytes} live bytes are {live_bytes}"
        assert self._uses.keys() <= found.keys(), "uses of what is not here"
