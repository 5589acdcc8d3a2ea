"""The node's host arena: slabs of memory that every replica of an application reads and writes.

    writer    has a reservation:  bytes ──copy──► slab, then the slab's header; the index is told
    reader    has a location:     slab ──copy──► its own bytes; then header and checksum agree
    index     hands both out, marks a slab in its header before a writer hears of it, and reads the
              headers when it starts anew

Nobody waits for anybody, and nobody is trusted to be alive: any of them may stop at any byte. What
keeps wrong bytes from a reader is the checksum over its copy, with a header that is true by itself
(see `slab_header`). All else makes misses rare: a writer does not begin after its deadline or in a
slab that is another's; the index keeps a slab back for as long as its writer may still be writing;
a lease keeps it in place while it is read.

The copies run without the interpreter lock. Knows neither files nor policy.
"""

import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rtp_serve.kv_store.arena_geometry import ArenaGeometry
from rtp_serve.kv_store.lease import Location
from rtp_serve.kv_store.reservation import Reservation
from rtp_serve.kv_store.slab_header import (
    HEADER_BYTES,
    SlabHeader,
    SlabMark,
    decode,
    encode,
    mark_of,
    ready,
    ready_at,
    reserved,
)
from rtp_serve.native.digest_copy import Bytes, digest_copies

Copy = Callable[[Sequence[Bytes], Sequence[Bytes]], list[bytes]]
"""Copies to each of the first from that of the second, which are equally long; the checksum (see
`checksum_of`) of the bytes that it read, each of them once."""


@dataclass(frozen=True, slots=True)
class SlabRecord:
    """What a slab's header says to an index that starts anew."""

    slab: int
    mark: SlabMark
    header: SlabHeader | None
    """None for EMPTY and TORN."""


class Arena:
    """Slabs over memory that others share."""

    def __init__(
        self, memory: mmap.mmap | bytearray, geometry: ArenaGeometry, copy: Copy = digest_copies
    ) -> None:
        """`memory` has the geometry's total bytes; it is held as long as the arena is."""
        whole = np.frombuffer(memory, np.uint8)
        assert whole.nbytes == geometry.total_bytes, f"{whole.nbytes} of {geometry.total_bytes}"
        self.geometry = geometry
        headers = whole[geometry.header_start(0) : geometry.header_start(geometry.num_slabs)]
        self._headers = headers.reshape(geometry.num_slabs, HEADER_BYTES)
        self._payloads = whole[geometry.payloads_start :].reshape(geometry.num_slabs, -1)
        self._copy = copy

    def put(
        self, reservations: Sequence[Reservation], sources: Sequence[memoryview], now_s: float
    ) -> list[bool]:
        """Write blocks' bytes, at most `slab_bytes` of each, and say so in the slabs' headers.

        The index is to be told: `complete` where True. False where the reservation has ended; there
        is nothing to be found then, and `abandon` says that nobody writes any more.

        The sources must not change meanwhile.
        """
        begun: list[tuple[Reservation, bytes, Bytes]] = []
        for each, source in zip(reservations, sources, strict=True):
            data = np.frombuffer(source, np.uint8)
            assert data.nbytes <= self.geometry.slab_bytes, f"a block of {data.nbytes} bytes"
            own_mark = encode(reserved(each), each.slab)
            if now_s < each.deadline_s and self._raw_header(each.slab) == own_mark:
                begun.append((each, own_mark, data))
        targets = [self._payloads[each.slab, : data.nbytes] for each, _, data in begun]
        checksums = self._copy(targets, [data for *_, data in begun])
        written = set()
        for (each, own_mark, data), checksum in zip(begun, checksums, strict=True):
            if self._raw_header(each.slab) == own_mark:
                self._write_header(each.slab, ready(each, data.nbytes, checksum))
                written.add(each.generation)
        return [each.generation in written for each in reservations]

    def read_into(
        self, locations: Sequence[Location], rooms: Sequence[memoryview]
    ) -> list[memoryview]:
        """Copy each block to the beginning of its room, where there is enough of it; the parts that
        they fill, up to the first block that is a miss.

        Its slab has something else, or had it at any time during the copies: the index is to be
        told (`mismatch`). What the rooms from there on hold then is of no use.
        """
        headers = [self._raw_header(location.slab) for location in locations]
        targets, sources, expected = [], [], []
        for header, location, room in zip(headers, locations, rooms, strict=True):
            found = ready_at(header, location)
            if found is None:
                break
            num_bytes, checksum = found
            targets.append(np.frombuffer(room, np.uint8, num_bytes))
            sources.append(self._payloads[location.slab, :num_bytes])
            expected.append(checksum)
        checksums = self._copy(targets, sources)
        filled = []
        for index, target in enumerate(targets):
            is_still_there = self._raw_header(locations[index].slab) == headers[index]
            if not is_still_there or checksums[index] != expected[index]:
                break
            filled.append(target.data)
        return filled

    def view(self, location: Location) -> tuple[memoryview, bytes] | None:
        """A block's bytes where they lie, and the checksum that they had when they were whole.

        None if the slab has something else. Without a lease it may have so at any moment: who reads
        compares with the checksum.
        """
        found = ready_at(self._raw_header(location.slab), location)
        if found is None:
            return None
        num_bytes, checksum = found
        return self._payloads[location.slab, :num_bytes].data.toreadonly(), checksum

    def mark_reserved(self, reservation: Reservation) -> None:
        """Make the slab nobody's but the reservation's. For the index's owner alone."""
        self._write_header(reservation.slab, reserved(reservation))

    def scan(self) -> Iterator[SlabRecord]:
        """Every slab, as its header has it now. A slab that is being written is not READY."""
        for slab in range(self.geometry.num_slabs):
            raw = self._raw_header(slab)
            header = decode(raw, slab)
            yield SlabRecord(slab, mark_of(raw, header), header)

    def _raw_header(self, slab: int) -> bytes:
        return bytes(self._headers[slab])

    def _write_header(self, slab: int, header: SlabHeader) -> None:
        self._headers[slab] = np.frombuffer(encode(header, slab), np.uint8)
