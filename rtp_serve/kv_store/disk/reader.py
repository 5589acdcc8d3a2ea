"""Reads blocks by location, in any process, without asking the owner.

    neighbours on disk ──► one request:   header | payload | header | payload …
                                             │         └──► the caller's buffer
                                             └──► looked at, then dropped

A segment may be cut off and removed at any time, and then a location finds nothing. What is read is
checked, header and payload, so it is the block or it is not used.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self

from rtp_serve.kv_store.disk.directory import DiskDirectory
from rtp_serve.kv_store.disk.file_io import FileIO, read_pages
from rtp_serve.kv_store.disk.pages import PAGE_BYTES, allocate, is_aligned, rounded_up
from rtp_serve.kv_store.disk.record import HEADER_BYTES, DiskLocation, is_header_of
from rtp_serve.kv_store.slab_header import checksum_of

_MAX_RECORDS = 256
"""In one request: the system takes 1024 pieces of memory."""


class ReadOutcome(StrEnum):
    """All but HIT are a miss, of which the owner is to be told (`DiskTier.quarantine`)."""

    HIT = "hit"
    GONE = "gone"
    """The segment has been given back, or somebody else removed it: the owner can tell."""

    MISMATCH = "mismatch"
    """There are other bytes than were written."""

    FAILED = "failed"
    """The disk did not read."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    location: DiskLocation
    buffer: memoryview


class DiskReader:
    """Reads one tier. Several threads may use it at once."""

    def __init__(
        self,
        directory: Path,
        io: FileIO | None = None,
        request_bytes: int = 8 << 20,
        num_requests: int = 3,
    ) -> None:
        """`directory` is the tier's; nothing is touched before the first read. Requests are about
        so large, unless blocks are larger; so many are under way at once, of all threads. With one
        at once, whoever asks makes it, and no other thread does."""
        self._io = io or FileIO()
        self._directory = DiskDirectory(directory, self._io)
        self._request_bytes = request_bytes
        self._num_requests = num_requests
        self._threads = ThreadPoolExecutor(num_requests, thread_name_prefix="kv-disk")

    def read(
        self, locations: Sequence[DiskLocation], buffers: Sequence[memoryview]
    ) -> list[ReadOutcome]:
        """Fill each buffer, which has the payload's length. Where that is whole pages, on a page
        boundary, the disk writes there; else it is copied. Without a HIT, its bytes are worth
        nothing. Raises nothing."""
        wanted = [_Wanted(*each) for each in zip(locations, buffers, strict=True)]
        for each in wanted:
            assert each.buffer.nbytes == each.location.num_bytes, f"{each} has another length"
        order = sorted(range(len(wanted)), key=lambda i: _place(locations[i]))
        requests = self._neighbours([wanted[i] for i in order])
        if min(len(requests), self._num_requests) > 1:
            found = [each for part in self._threads.map(self._fetch, requests) for each in part]
        else:
            found = [each for request in requests for each in self._fetch(request)]
        outcomes = dict(zip(order, found, strict=True))
        return [outcomes[i] for i in range(len(wanted))]

    def close(self) -> None:
        """Waits for those who read."""
        self._threads.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _neighbours(self, wanted: Sequence[_Wanted]) -> list[list[_Wanted]]:
        """In the disk's order, cut where a gap is or a request is full."""
        requests: list[list[_Wanted]] = []
        num_bytes = 0
        for each in wanted:
            location = each.location
            last = requests[-1][-1].location if requests else None
            is_next = last is not None and (last.segment, last.end) == _place(location)
            num_bytes += location.record_bytes
            if is_next and num_bytes <= self._request_bytes and len(requests[-1]) < _MAX_RECORDS:
                requests[-1].append(each)
            else:
                requests.append([each])
                num_bytes = location.record_bytes
        return requests

    def _fetch(self, request: Sequence[_Wanted]) -> list[ReadOutcome]:
        """One request; one for each block if the disk does not read all of them at once."""
        try:
            descriptor = self._directory.open_segment(request[0].location.segment, os.O_RDONLY)
        except FileNotFoundError:
            return [ReadOutcome.GONE] * len(request)
        except OSError:
            return [ReadOutcome.FAILED] * len(request)
        try:
            try:
                return self._read_open(descriptor, request)
            finally:
                self._io.close(descriptor)
        except OSError:
            if len(request) == 1:
                return [ReadOutcome.FAILED]
            return [outcome for each in request for outcome in self._fetch([each])]

    def _read_open(self, descriptor: int, request: Sequence[_Wanted]) -> list[ReadOutcome]:
        headers = allocate(len(request) * PAGE_BYTES)
        pieces: list[memoryview] = []
        are_aligned = [is_aligned(each.buffer) for each in request]
        for i, (each, is_in_place) in enumerate(zip(request, are_aligned, strict=True)):
            pieces.append(headers[i * PAGE_BYTES : (i + 1) * PAGE_BYTES])
            buffer = each.buffer.cast("B")
            pieces.append(buffer if is_in_place else allocate(rounded_up(buffer.nbytes)))
        start = request[0].location.offset
        end = start + read_pages(self._io, descriptor, pieces, start)
        outcomes = []
        for each, is_in_place, header, payload in zip(
            request, are_aligned, pieces[::2], pieces[1::2], strict=True
        ):
            if each.location.end > end:
                outcomes.append(ReadOutcome.GONE)
                continue
            payload = payload[: each.location.num_bytes]
            outcomes.append(_verified(each.location, header, payload))
            if outcomes[-1] is ReadOutcome.HIT and not is_in_place:
                each.buffer.cast("B")[:] = payload
        return outcomes


def _place(location: DiskLocation) -> tuple[int, int]:
    return location.segment, location.offset


def _verified(location: DiskLocation, header: memoryview, payload: memoryview) -> ReadOutcome:
    is_right = is_header_of(bytes(header[:HEADER_BYTES]), location)
    if not is_right or checksum_of(payload) != location.checksum:
        return ReadOutcome.MISMATCH
    return ReadOutcome.HIT
