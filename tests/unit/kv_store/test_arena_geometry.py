import struct

import pytest

from rtp_serve.errors import ArenaMismatch
from rtp_serve.kv_store.arena_geometry import (
    EPOCH_OFFSET,
    PAGE_BYTES,
    PREAMBLE_BYTES,
    ArenaGeometry,
    check_equal,
    decode_preamble,
    encode_preamble,
    num_slabs_in,
)
from rtp_serve.kv_store.slab_header import HEADER_BYTES
from tests.unit.kv_store.arenas import LAYOUT, make_geometry


@pytest.mark.parametrize("slab_bytes", [1, 4095, 4096, 4097, 1 << 20])
@pytest.mark.parametrize("num_slabs", [1, 21, 22, 1000])
def test_nothing_overlaps_and_payloads_start_at_pages(slab_bytes: int, num_slabs: int):
    geometry = ArenaGeometry(slab_bytes, num_slabs, LAYOUT)
    assert PREAMBLE_BYTES <= EPOCH_OFFSET < EPOCH_OFFSET + 8 <= geometry.header_start(0)
    assert geometry.header_start(num_slabs - 1) + HEADER_BYTES <= geometry.payload_start(0)
    for slab in range(num_slabs):
        assert geometry.header_start(slab) % 64 == 0
        assert geometry.payload_start(slab) % PAGE_BYTES == 0
    if num_slabs > 1:
        assert geometry.payload_start(0) + slab_bytes <= geometry.payload_start(1)
    assert geometry.payload_start(num_slabs - 1) + slab_bytes <= geometry.total_bytes
    assert geometry.total_bytes % PAGE_BYTES == 0


@pytest.mark.parametrize("slab_bytes", [100, 100_000, 1 << 20])
def test_as_many_slabs_as_fit_are_made_and_no_more(slab_bytes: int):
    for num_bytes in (0, 4096, 8192, 1 << 20, (64 << 20) + 4097, 1 << 30):
        num_slabs = num_slabs_in(num_bytes, slab_bytes)
        if num_slabs:
            assert ArenaGeometry(slab_bytes, num_slabs, LAYOUT).total_bytes <= num_bytes
        more = ArenaGeometry(slab_bytes, num_slabs + 2, LAYOUT)
        assert more.total_bytes > num_bytes


def test_a_preamble_comes_back_as_it_was_written():
    geometry = make_geometry()
    assert decode_preamble(encode_preamble(geometry), geometry.total_bytes) == geometry


def test_every_flipped_byte_and_every_cut_of_a_preamble_is_noticed():
    geometry = make_geometry()
    raw = bytearray(encode_preamble(geometry))
    for position in range(PREAMBLE_BYTES):
        raw[position] ^= 1
        with pytest.raises(ArenaMismatch):
            decode_preamble(bytes(raw), geometry.total_bytes)
        raw[position] ^= 1
        with pytest.raises(ArenaMismatch):
            decode_preamble(bytes(raw[:position]), geometry.total_bytes)


def test_another_version_is_refused_by_name():
    geometry = make_geometry()
    raw = bytearray(encode_preamble(geometry))
    struct.pack_into("<I", raw, 8, 99)
    with pytest.raises(ArenaMismatch, match="format version 99, this is 1"):
        decode_preamble(bytes(raw), geometry.total_bytes)


def test_a_file_of_another_length_is_refused():
    geometry = make_geometry()
    with pytest.raises(ArenaMismatch, match="bytes of"):
        decode_preamble(encode_preamble(geometry), geometry.total_bytes - 4096)


def test_blocks_of_another_format_are_refused_and_another_number_of_slabs_is_not():
    check_equal(make_geometry(3), 5000, LAYOUT)
    with pytest.raises(ArenaMismatch, match="slabs of 5000 bytes, not 5001"):
        check_equal(make_geometry(3), 5001, LAYOUT)
    with pytest.raises(ArenaMismatch, match="another layout"):
        check_equal(make_geometry(3), 5000, bytes(32))
