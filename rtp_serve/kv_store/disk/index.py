"""Which blocks can be found, in which segment each is, and which are kept. Knows nothing of files.

    key ──► Record ◄── Segment.records[offset]      always both or neither

A key has one record. Lookups may come from another thread than changes do.

Blocks are let go in the order of their last use, none before those after it in its chain. One that
was let go is found until its segment is given back, and a use makes it one that is kept again; so
who cleans segments loses what nobody has used for long, and never the middle of a chain in use.
"""

import threading
from collections.abc import Sequence

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_cache.block_changes import BlockNews
from rtp_serve.kv_store.block_events import BlockEvents
from rtp_serve.kv_store.disk.record import DiskLocation, Record
from rtp_serve.kv_store.disk.segment import Segment
from rtp_serve.kv_store.eviction.lru import LRU

_NUM_EVENTS = 4096
"""How many events are remembered."""


class DiskIndex:
    """Segments by number, the oldest first, and records by key."""

    def __init__(self) -> None:
        self.segments: dict[int, Segment] = {}
        self.live_bytes = 0
        self._lock = threading.Lock()
        self._by_key: dict[BlockHash, Record] = {}
        self._kept: set[BlockHash] = set()
        self._order = LRU(1)  # of those kept; the capacity is of no use to it
        self._events = BlockEvents(_NUM_EVENTS, 0)

    def __len__(self) -> int:
        return len(self._by_key)

    def __contains__(self, key: BlockHash) -> bool:
        return key in self._by_key

    def find(self, location: DiskLocation) -> Record | None:
        """None if the block is not there, or not any more."""
        record = self._by_key.get(location.key)
        return record if record is not None and record.location == location else None

    def find_prefix(self, chain: Sequence[BlockHash], start: int) -> list[DiskLocation]:
        """Of the blocks that are here of a chain, from its `start`th on to the first that is not.

        It is a use of each, and of those before it, which another tier gave, where they are here.
        """
        with self._lock:
            end = start
            while end < len(chain) and chain[end] in self._by_key:
                end += 1
            for key in reversed(chain[:end]):
                self._use(key)
            return [self._by_key[key].location for key in chain[start:end]]

    def use(self, key: BlockHash) -> None:
        """Note a use of a block, if it is here."""
        with self._lock:
            self._use(key)

    def let_go_oldest(self) -> None:
        """Of the kept blocks, of which there is one, that whose last use is the longest ago."""
        with self._lock:
            key = self._order.victim(lambda _: True)
            assert key is not None, "no block is kept"
            self._kept.remove(key)
            record = self._by_key[key]
            self._segment_of(record).kept_bytes -= record.location.record_bytes

    def kept(self, segment: Segment, max_bytes: int) -> list[Record]:
        """The kept blocks of a segment in their order, as many as are not more than `max_bytes`."""
        found = []
        with self._lock:
            for record in segment.records.values():
                if record.key in self._kept:
                    max_bytes -= record.location.record_bytes
                    if max_bytes < 0:  # somebody has just used what had been let go
                        break
                    found.append(record)
        return found

    def add_segment(self, segment: Segment) -> None:
        """Newer than all others, and without records."""
        assert not segment.records, f"{len(segment.records)} records come with {segment.number}"
        self.segments[segment.number] = segment

    def add(self, record: Record) -> None:
        """Of a segment that is here. An older record of the same block is not found any more; if it
        was kept, the time of its last use stays, else this is one."""
        with self._lock:
            before = self._by_key.get(record.key)
            if before is not None:
                self._take_out(before)
            else:
                self._events.append(record.key, is_added=True)
            self._by_key[record.key] = record
            self._segment_of(record).records[record.location.offset] = record
            self.live_bytes += record.location.record_bytes
            if record.key in self._kept:
                self._segment_of(record).kept_bytes += record.location.record_bytes
            else:
                self._keep(record)

    def remove(self, record: Record) -> None:
        """It is not found any more."""
        with self._lock:
            assert self._by_key[record.key] is record, f"{record} is not the one that is found"
            self._forget(record)

    def remove_segment(self, number: int) -> int:
        """And all records that are in it; how many those were."""
        with self._lock:
            records = list(self.segments[number].records.values())
            for record in records:
                self._forget(record)
            del self.segments[number]
        return len(records)

    def news(self, since: int | None) -> tuple[int, BlockNews | None]:
        """The present version, and what `BlockEvents.news` says."""
        with self._lock:
            return self._events.version, self._events.news(since, self._by_key)

    def _segment_of(self, record: Record) -> Segment:
        return self.segments[record.location.segment]

    def _use(self, key: BlockHash) -> None:
        if key in self._kept:
            self._order.hit(key)
        elif key in self._by_key:
            self._keep(self._by_key[key])

    def _keep(self, record: Record) -> None:
        self._order.insert(record.key, record.request.parent)
        self._kept.add(record.key)
        self._segment_of(record).kept_bytes += record.location.record_bytes

    def _forget(self, record: Record) -> None:
        self._take_out(record)
        del self._by_key[record.key]
        self._events.append(record.key, is_added=False)
        if record.key in self._kept:
            self._kept.remove(record.key)
            self._order.remove(record.key)

    def _take_out(self, record: Record) -> None:
        """Of its segment."""
        segment = self._segment_of(record)
        del segment.records[record.location.offset]
        self.live_bytes -= record.location.record_bytes
        if record.key in self._kept:
            segment.kept_bytes -= record.location.record_bytes

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
            kept_bytes = sum(
                record.location.record_bytes
                for record in segment.records.values()
                if record.key in self._kept
            )
            assert kept_bytes == segment.kept_bytes, f"{number} keeps {kept_bytes} bytes"
        assert found == self._by_key, "segments and keys disagree"
        live_bytes = sum(record.location.record_bytes for record in found.values())
        assert live_bytes == self.live_bytes, f"{self.live_bytes} live bytes are {live_bytes}"
        self._order.check_invariants()
        assert self._kept <= found.keys(), "what is kept cannot be found"
