from dataclasses import replace

import pytest

from rtp_serve.kv_store.reservation import MAX_TENANT_BYTES, StoreRequest
from rtp_serve.kv_store.slab_header import (
    HEADER_BYTES,
    SlabMark,
    checksum_of,
    decode,
    encode,
    mark_of,
    ready,
    ready_at,
    reserved,
)
from tests.unit.kv_store.arenas import make_key, make_reservation, place_of
from tests.unit.kv_store.blocks import TAG

RESERVATION = make_reservation("a", slab=2, generation=(3 << 32) + 5, parent="p", deadline_s=12.5)
READY = ready(RESERVATION, 4711, checksum_of(memoryview(b"bytes")))


@pytest.mark.parametrize("parent", [None, "p"])
@pytest.mark.parametrize("tenant", ["", "t", "ü" * 31, "\ud800", "a\0"])
def test_headers_come_back_as_they_were_written(parent: str | None, tenant: str):
    reservation = make_reservation("a", slab=2, parent=parent)
    reservation = replace(reservation, request=replace(reservation.request, tenant=tenant))
    for header in (reserved(reservation), ready(reservation, 9, b"c" * 16)):
        raw = encode(header, 2)
        assert len(raw) == HEADER_BYTES
        assert decode(raw, 2) == header
        assert mark_of(raw, header) is header.mark


def test_a_header_counts_in_its_own_slab_only():
    assert decode(encode(READY, 2), 3) is None


def test_every_flipped_byte_is_noticed():
    raw = bytearray(encode(READY, 2))
    for position in range(HEADER_BYTES):
        raw[position] ^= 1
        assert decode(bytes(raw), 2) is None, position
        assert mark_of(bytes(raw), None) is SlabMark.TORN
        raw[position] ^= 1
    assert decode(bytes(raw), 2) == READY


def test_no_mix_of_two_headers_is_a_third():
    """As when two write at once, or one dies between two bytes."""
    whole = {encode(header, 2) for header in (reserved(RESERVATION), READY)}
    old, new = whole
    for cut in range(1, HEADER_BYTES):
        for mixed in (old[:cut] + new[cut:], new[:cut] + old[cut:]):
            assert (decode(mixed, 2) is not None) == (mixed in whole), cut


def test_zeros_are_a_slab_that_was_never_used():
    raw = bytes(HEADER_BYTES)
    assert decode(raw, 0) is None
    assert mark_of(raw, None) is SlabMark.EMPTY


def test_a_ready_header_is_of_one_key_and_generation():
    location = place_of(RESERVATION)
    raw = encode(READY, location.slab)
    assert ready_at(raw, location) == (READY.num_bytes, READY.checksum)
    assert ready_at(encode(reserved(RESERVATION), location.slab), location) is None
    assert ready_at(raw, replace(location, generation=location.generation + 1)) is None
    assert ready_at(raw, replace(location, key=make_key("b"))) is None
    assert ready_at(raw, replace(location, slab=location.slab + 1)) is None
    assert ready_at(bytes(HEADER_BYTES), location) is None


def test_a_tenant_whose_name_does_not_fit_is_caught():
    with pytest.raises(AssertionError, match="tenant"):
        StoreRequest(make_key("a"), None, "ü" * 32, TAG)
    assert StoreRequest(make_key("a"), None, "t" * MAX_TENANT_BYTES, TAG)
