"""Any byte of a segment's file may change: a block is then missed, or still right, never wrong."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from rtp_serve.kv_store.disk.pages import PAGE_BYTES
from rtp_serve.kv_store.disk.record import HEADER_BYTES
from rtp_serve.kv_store.disk.segment import SegmentHeader, decode_page
from tests.unit.kv_store.blocks import make_chain
from tests.unit.kv_store.disk.tiers import (
    BLOCK_BYTES,
    SETTINGS,
    blocks_of,
    make_tier,
    put,
    read,
    readable,
    segment_files,
)

CHAIN = make_chain(3)
FEW_ENTRIES = replace(SETTINGS, max_bytes=8 << 20, segment_bytes=520 << 10)
"""Whose journal has 16 entries, a page of them."""


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A segment of three blocks."""
    with make_tier(tmp_path) as tier:
        put(tier, CHAIN)
    return segment_files(tmp_path)[0]


def _header(data: bytes) -> SegmentHeader:
    header = decode_page(memoryview(data)[:PAGE_BYTES], 1)
    assert header is not None
    return header


def _record_start(data: bytes, i: int) -> int:
    return _header(data).start + i * 3 * PAGE_BYTES


def _num_readable_after_flips(segment: Path, data: bytes, offsets: range) -> set[int]:
    """What a new owner and its readers have of the chain, for each of the offsets."""
    generator = random.Random(0)
    lengths = set()
    for offset in offsets:
        damaged = bytearray(data)
        damaged[offset] ^= 1 << generator.randrange(8)
        segment.write_bytes(damaged)
        with make_tier(segment.parent) as tier:
            lengths.add(readable(tier, segment.parent, CHAIN))
            tier.check_invariants()
        segment.unlink(missing_ok=True)
    return lengths


def test_without_a_flip_all_is_read(whole: Path) -> None:
    data = whole.read_bytes()
    assert len(data) == _record_start(data, 3)
    with make_tier(whole.parent) as tier:
        assert readable(tier, whole.parent, CHAIN) == 3


def test_a_flip_in_the_segments_header_loses_the_segment(whole: Path) -> None:
    data = whole.read_bytes()
    assert _num_readable_after_flips(whole, data, range(40)) == {0}


def test_a_flip_behind_a_header_changes_nothing(whole: Path) -> None:
    data = whole.read_bytes()
    assert _num_readable_after_flips(whole, data, range(40, PAGE_BYTES, 500)) == {3}
    start = _record_start(data, 1) + HEADER_BYTES
    assert _num_readable_after_flips(whole, data, range(start, start + 3000, 500)) == {3}


def test_a_flip_in_the_journal_is_mended_by_the_records(whole: Path) -> None:
    data = whole.read_bytes()
    offsets = range(PAGE_BYTES, PAGE_BYTES + 3 * HEADER_BYTES, 3)
    assert _num_readable_after_flips(whole, data, offsets) == {3}


def test_a_flip_in_a_records_header_loses_the_block(whole: Path) -> None:
    data = whole.read_bytes()
    start = _record_start(data, 1)
    assert _num_readable_after_flips(whole, data, range(start, start + HEADER_BYTES, 2)) == {1}


def test_a_flip_in_a_payload_loses_the_block(whole: Path) -> None:
    data = whole.read_bytes()
    start = _record_start(data, 1) + PAGE_BYTES
    assert _num_readable_after_flips(whole, data, range(start, start + BLOCK_BYTES, 97)) == {1}


def test_a_flip_in_the_zeros_behind_a_payload_changes_nothing(whole: Path) -> None:
    data = whole.read_bytes()
    start, end = _record_start(data, 0) + PAGE_BYTES + BLOCK_BYTES, _record_start(data, 1)
    assert _num_readable_after_flips(whole, data, range(start, end, 300)) == {3}


def test_without_a_journal_records_behind_a_damaged_one_are_found(whole: Path) -> None:
    data = bytearray(whole.read_bytes())
    data[PAGE_BYTES : _header(data).start] = bytes(_header(data).journal_bytes)
    data[_record_start(data, 1) + 8] ^= 1
    whole.write_bytes(data)
    with make_tier(whole.parent) as tier:
        assert [len(tier.lookup(CHAIN[i:])) for i in range(3)] == [1, 0, 1]
        assert readable(tier, whole.parent, CHAIN[2:]) == 1


def test_a_copy_of_a_record_is_none(whole: Path) -> None:
    data = bytearray(whole.read_bytes())
    first, second, third = (_record_start(data, i) for i in range(3))
    data[second:third] = data[first:second]
    data[PAGE_BYTES:first] = bytes(first - PAGE_BYTES)
    whole.write_bytes(data)
    with make_tier(whole.parent) as tier:
        assert [readable(tier, whole.parent, CHAIN[i:]) for i in range(3)] == [1, 0, 1]


def test_records_behind_a_page_of_zeros_are_found_if_the_journal_knows_one(whole: Path) -> None:
    data = bytearray(whole.read_bytes())
    start = _record_start(data, 0)
    data[start : start + PAGE_BYTES] = bytes(PAGE_BYTES)
    data[PAGE_BYTES] ^= 1
    data[PAGE_BYTES + 2 * HEADER_BYTES] ^= 1
    whole.write_bytes(data)
    with make_tier(whole.parent) as tier:
        assert [readable(tier, whole.parent, CHAIN[i:]) for i in range(3)] == [0, 2, 1]


def test_the_journal_of_several_puts_has_all_records(tmp_path: Path) -> None:
    with make_tier(tmp_path) as tier:
        for i in range(3):
            put(tier, CHAIN[: i + 1])
    segment = segment_files(tmp_path)[0]
    data = bytearray(segment.read_bytes())
    for i in range(3):
        data[_record_start(data, i)] ^= 1
    segment.write_bytes(data)
    with make_tier(tmp_path) as tier:
        assert len(tier.lookup(CHAIN)) == 3, "their own headers do not say so"
        assert readable(tier, tmp_path, CHAIN) == 0


def test_records_that_the_journal_has_no_room_for_are_found(tmp_path: Path) -> None:
    chain = make_chain(30)
    with make_tier(tmp_path, settings=FEW_ENTRIES) as tier:
        tier.put(blocks_of(chain, num_bytes=10))
        assert len(segment_files(tmp_path)) == 1
    with make_tier(tmp_path, settings=FEW_ENTRIES) as tier:
        locations = tier.lookup(chain)
        assert [each.key for each in locations] == chain
        assert set(read(tmp_path, locations)) == {"hit"}


@pytest.mark.parametrize("num_lost", [1, PAGE_BYTES, PAGE_BYTES + 1, 3 * PAGE_BYTES])
def test_a_torn_tail_is_cut_off(whole: Path, num_lost: int) -> None:
    data = whole.read_bytes()
    whole.write_bytes(data[:-num_lost])
    with make_tier(whole.parent) as tier:
        assert readable(tier, whole.parent, CHAIN) == 2
        assert whole.stat().st_size == _record_start(data, 2)
        assert put(tier, CHAIN) == (True,) * 3
        assert readable(tier, whole.parent, CHAIN) == 3


def test_a_segment_under_another_name_is_none(whole: Path) -> None:
    whole.rename(whole.with_name(f"{2:020}.segment"))
    with make_tier(whole.parent) as tier:
        assert tier.lookup(CHAIN) == []
        assert segment_files(whole.parent) == []


@pytest.mark.parametrize("has_journal", [True, False])
def test_a_record_at_another_place_is_none(whole: Path, has_journal: bool) -> None:
    data = bytearray(whole.read_bytes())
    first, second, third = (_record_start(data, i) for i in range(3))
    data[first:second], data[second:third] = data[second:third], data[first:second]
    if not has_journal:
        data[PAGE_BYTES:first] = bytes(first - PAGE_BYTES)
    whole.write_bytes(data)
    with make_tier(whole.parent) as tier:
        assert readable(tier, whole.parent, CHAIN) == 0
        assert readable(tier, whole.parent, CHAIN[2:]) == 1
