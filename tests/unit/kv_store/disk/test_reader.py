import errno
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rtp_serve.kv_store.disk.file_io import FileIO
from rtp_serve.kv_store.disk.pages import PAGE_BYTES, allocate
from rtp_serve.kv_store.disk.reader import DiskReader, ReadOutcome
from tests.unit.kv_store.blocks import make_chain
from tests.unit.kv_store.disk.tiers import (
    PER_SEGMENT,
    blocks_of,
    content,
    make_tier,
    put,
    read,
    segment_files,
)


class Requests:
    """Counts what is read behind the first two pages, and may fail where told."""

    def __init__(self, bad_offset: int | None = None) -> None:
        self.requests: list[tuple[int, int]] = []
        self._bad_offset = bad_offset
        self.io = FileIO(read=self._read)

    def _read(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        num_bytes = sum(buffer.nbytes for buffer in buffers)
        if offset:
            self.requests.append((offset, num_bytes))
        if self._bad_offset is not None and offset <= self._bad_offset < offset + num_bytes:
            raise OSError(errno.EIO, "a bad sector")
        return os.preadv(descriptor, buffers, offset)


@pytest.mark.parametrize("num_bytes", [1, 4095, 4096, 4097, 8192])
@pytest.mark.parametrize("shift", [0, 8])
def test_any_length_is_read_into_any_memory(tmp_path: Path, num_bytes: int, shift: int) -> None:
    chain = make_chain(4)
    with make_tier(tmp_path) as tier, DiskReader(tmp_path) as reader:
        tier.put(blocks_of(chain, num_bytes=num_bytes))
        locations = tier.lookup(chain)
        buffers = [allocate(4 * PAGE_BYTES)[shift:][:num_bytes] for _ in chain]
        assert reader.read(locations, buffers) == [ReadOutcome.HIT] * 4
        assert buffers == [content(key, num_bytes) for key in chain]


def test_neighbours_are_read_with_one_request(tmp_path: Path) -> None:
    chain = make_chain(PER_SEGMENT)
    requests = Requests()
    with make_tier(tmp_path) as tier:
        put(tier, chain)
        locations = tier.lookup(chain)
        assert read(tmp_path, locations, requests.io) == ["hit"] * PER_SEGMENT
        size = locations[0].record_bytes
        assert requests.requests == [(locations[0].offset, PER_SEGMENT * size)]
        requests.requests.clear()
        del locations[2]
        assert read(tmp_path, locations[::-1], requests.io) == ["hit"] * (PER_SEGMENT - 1)
        assert sorted(requests.requests) == [
            (locations[0].offset, 2 * size),
            (locations[2].offset, (PER_SEGMENT - 3) * size),
        ]


def test_requests_have_a_limit(tmp_path: Path) -> None:
    chain = make_chain(PER_SEGMENT)
    requests = Requests()
    with make_tier(tmp_path) as tier:
        put(tier, chain)
        locations = tier.lookup(chain)
        size = locations[0].record_bytes
        buffers = [allocate(location.num_bytes) for location in locations]
        with DiskReader(tmp_path, requests.io, request_bytes=2 * size) as reader:
            assert reader.read(locations, buffers) == ["hit"] * PER_SEGMENT
        assert {num_bytes for _, num_bytes in requests.requests} <= {size, 2 * size}
        assert len(requests.requests) == -(-PER_SEGMENT // 2)


def test_a_bad_sector_costs_one_block(tmp_path: Path) -> None:
    chain = make_chain(3)
    with make_tier(tmp_path) as tier:
        put(tier, chain)
        locations = tier.lookup(chain)
        requests = Requests(bad_offset=locations[1].offset + PAGE_BYTES)
        assert read(tmp_path, locations, requests.io) == ["hit", "failed", "hit"]


def test_short_reads_are_gone_on_with(tmp_path: Path) -> None:
    def a_page(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        return os.preadv(descriptor, [buffers[0][:PAGE_BYTES]], offset)

    chain = make_chain(3)
    with make_tier(tmp_path) as tier:
        put(tier, chain)
        assert read(tmp_path, tier.lookup(chain), FileIO(read=a_page)) == ["hit"] * 3


def test_a_location_of_a_segment_that_went_is_gone(tmp_path: Path) -> None:
    chain = make_chain(2)
    with make_tier(tmp_path) as tier:
        put(tier, chain)
        locations = tier.lookup(chain)
        segment = segment_files(tmp_path)[0]
        with segment.open("r+b") as file:
            file.truncate(locations[1].offset + PAGE_BYTES)
        assert read(tmp_path, locations) == ["hit", "gone"]
        tier.trim(1)
        assert read(tmp_path, locations) == ["gone", "gone"]


def test_nothing_is_read_of_nothing(tmp_path: Path) -> None:
    assert read(tmp_path / "missing", []) == []


def test_threads_share_a_reader(tmp_path: Path) -> None:
    chains = [make_chain(PER_SEGMENT, str(i)) for i in range(4)]
    with make_tier(tmp_path) as tier, DiskReader(tmp_path) as reader:
        for chain in chains:
            put(tier, chain)
        locations = [each for chain in chains for each in tier.lookup(chain)]

        def read_all(_: int) -> bool:
            buffers = [allocate(location.num_bytes) for location in locations]
            outcomes = reader.read(locations, buffers)
            return set(outcomes) == {ReadOutcome.HIT} and buffers == [
                content(location.key) for location in locations
            ]

        with ThreadPoolExecutor(4) as threads:
            assert all(threads.map(read_all, range(8)))
