"""Small arenas over plain memory, and blocks to put into them."""

import numpy as np

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.arena import Arena, Copy
from rtp_serve.kv_store.arena_geometry import ArenaGeometry
from rtp_serve.kv_store.lease import Location
from rtp_serve.kv_store.reservation import Reservation, StoreRequest
from rtp_serve.native.digest_copy import digest_copies
from tests.unit.kv_store.blocks import TAG

LAYOUT = b"layout" + bytes(26)
NOBODY_LATE_S = 1e9


def make_geometry(num_slabs: int = 3, slab_bytes: int = 5000) -> ArenaGeometry:
    return ArenaGeometry(slab_bytes, num_slabs, LAYOUT)


def make_arena(num_slabs: int = 3, copy: Copy = digest_copies) -> Arena:
    geometry = make_geometry(num_slabs)
    return Arena(bytearray(geometry.total_bytes), geometry, copy)


def make_key(name: str) -> BlockHash:
    return BlockHash(name.encode().ljust(32, b"."))


def content(name: str, num_bytes: int = 5000) -> memoryview:
    """Bytes that no other name has."""
    seed = int.from_bytes(name.encode()[:8], "little")
    return memoryview(np.random.default_rng(seed).bytes(num_bytes))


def make_reservation(
    name: str,
    slab: int = 0,
    generation: int = 7,
    parent: str | None = None,
    deadline_s: float = NOBODY_LATE_S,
) -> Reservation:
    above = None if parent is None else make_key(parent)
    return Reservation(
        StoreRequest(make_key(name), above, "tenant", TAG), slab, generation, "owner", deadline_s
    )


def put(arena: Arena, reservation: Reservation, name: str) -> bool:
    arena.mark_reserved(reservation)
    (is_written,) = arena.put([reservation], [content(name)], 0)
    return is_written


def place_of(reservation: Reservation) -> Location:
    return Location(reservation.request.key, reservation.slab, reservation.generation)


def read(arena: Arena, location: Location) -> bytes | None:
    filled = arena.read_into([location], [memoryview(bytearray(arena.geometry.slab_bytes))])
    return filled[0].tobytes() if filled else None
