"""Blocks that are let go are found until their segment is given back, and kept again once used."""

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.disk.index import DiskIndex
from rtp_serve.kv_store.disk.pages import PAGE_BYTES
from rtp_serve.kv_store.disk.record import DiskLocation, Record
from rtp_serve.kv_store.disk.segment import Segment, SegmentHeader
from tests.unit.kv_store.blocks import make_chain, requests_of

CHAIN = make_chain(4)
RECORD_BYTES = 2 * PAGE_BYTES


def _records(segment: int) -> list[Record]:
    return [
        Record(
            request,
            DiskLocation(request.key, segment, PAGE_BYTES + i * RECORD_BYTES, 4000, bytes(16)),
        )
        for i, request in enumerate(requests_of(CHAIN))
    ]


def _index() -> DiskIndex:
    """With the chain in segment 1."""
    index = DiskIndex()
    for number in (1, 2):
        index.add_segment(Segment(SegmentHeader(number, 0)))
    for record in reversed(_records(1)):
        index.add(record)
    index.check_invariants()
    return index


def _kept(index: DiskIndex, segment: int = 1, max_bytes: int = 1 << 20) -> list[BlockHash]:
    index.check_invariants()
    return sorted(
        (record.key for record in index.kept(index.segments[segment], max_bytes)), key=CHAIN.index
    )


def test_a_block_is_let_go_after_those_that_come_after_it() -> None:
    index = _index()
    for num_left in (3, 2, 1, 0):
        index.let_go_oldest()
        assert _kept(index) == CHAIN[:num_left]
        assert index.segments[1].kept_bytes == num_left * RECORD_BYTES
    assert len(index) == 4, "all are found as long as the segment is there"


def test_a_use_keeps_what_was_let_go() -> None:
    index = _index()
    for _ in range(3):
        index.let_go_oldest()
    assert len(index.find_prefix(CHAIN[:3], 0)) == 3
    assert _kept(index) == CHAIN[:3]
    assert index.remove_segment(1) == 4
    assert _kept(index, 2) == []


def test_what_lies_behind_a_gap_is_not_used() -> None:
    index = _index()
    gone = index.find(_records(1)[1].location)
    assert gone is not None
    index.remove(gone)
    for _ in range(3):
        index.let_go_oldest()
    assert len(index.find_prefix(CHAIN, 0)) == 1
    assert _kept(index) == CHAIN[:1]
    assert len(index.find_prefix(CHAIN, 2)) == 2, "another tier has the one that is missing"
    assert _kept(index) == [CHAIN[0], CHAIN[2], CHAIN[3]]


def test_a_block_that_is_written_again_is_as_old_as_it_was() -> None:
    index = _index()
    (request,) = requests_of(make_chain(1, "other"))
    offset = PAGE_BYTES + 10 * RECORD_BYTES
    index.add(Record(request, DiskLocation(request.key, 2, offset, 4000, bytes(16))))
    for record in _records(2):
        index.add(record)
    assert _kept(index) == []
    index.let_go_oldest()
    assert index.segments[2].kept_bytes == 4 * RECORD_BYTES
    for _ in range(3):
        index.let_go_oldest()
    assert [record.key for record in index.kept(index.segments[2], 1 << 20)] == [request.key]


def test_no_more_is_kept_than_there_is_room_for() -> None:
    assert len(_kept(_index(), max_bytes=3 * RECORD_BYTES - 1)) == 2
