"""Records are read in few requests, whatever room there is, and what is not whole is left out."""

from pathlib import Path

import pytest

from rtp_serve.kv_store.disk.pages import PAGE_BYTES, rounded_up
from rtp_serve.kv_store.disk.reader import DiskReader
from rtp_serve.kv_store.disk.record import Record
from rtp_serve.kv_store.disk.record_reader import RecordReader
from tests.unit.kv_store.blocks import make_chain, requests_of
from tests.unit.kv_store.disk.tiers import (
    BLOCK_BYTES,
    PER_SEGMENT,
    content,
    make_tier,
    put,
    segment_files,
)

ROOM = rounded_up(BLOCK_BYTES)


@pytest.mark.parametrize("room_bytes", [PAGE_BYTES, ROOM, 2 * ROOM, 64 * ROOM])
def test_all_come_in_order_whatever_room_there_is(tmp_path: Path, room_bytes: int) -> None:
    chain = make_chain(PER_SEGMENT)
    with make_tier(tmp_path) as tier, DiskReader(tmp_path, num_requests=1) as reader:
        put(tier, chain)
        records = list(map(Record, requests_of(chain), tier.lookup(chain)))
        blocks = [
            (block.key, bytes(block.payload), block.is_whole)
            for block in RecordReader(reader, room_bytes).read(records)
        ]
        assert blocks == [(key, content(key).tobytes(), True) for key in chain]


def test_what_is_not_whole_is_left_out(tmp_path: Path) -> None:
    chain = make_chain(PER_SEGMENT)
    with make_tier(tmp_path) as tier, DiskReader(tmp_path, num_requests=1) as reader:
        put(tier, chain)
        records = list(map(Record, requests_of(chain), tier.lookup(chain)))
        (path,) = segment_files(tmp_path)
        with path.open("r+b") as file:
            file.seek(records[1].location.offset + PAGE_BYTES)
            file.write(b"\0" * 8)
        found = [block.key for block in RecordReader(reader).read(records)]
        assert found == [chain[0], *chain[2:]]


def test_no_records_are_no_blocks(tmp_path: Path) -> None:
    with DiskReader(tmp_path, num_requests=1) as reader:
        assert list(RecordReader(reader).read([])) == []
