from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from rtp_serve.kv_store.arena import Arena
from rtp_serve.kv_store.slab_header import SlabMark, checksum_of
from rtp_serve.native.digest_copy import Bytes
from tests.unit.kv_store.arenas import (
    content,
    make_arena,
    make_geometry,
    make_reservation,
    place_of,
    put,
    read,
)


class Interrupted(Exception):
    """Takes the place of a death in the middle of a copy."""


class Meddler:
    """Copies, and does something else in between: after so many bytes of the next copy."""

    def __init__(self) -> None:
        self.after_bytes = 0
        self.meddle = lambda: None

    def __call__(self, targets: Sequence[Bytes], sources: Sequence[Bytes]) -> list[bytes]:
        return list(map(self._copy, targets, sources))

    def _copy(self, into: Bytes, source: Bytes) -> bytes:
        begin = source[: self.after_bytes].tobytes()
        into[: self.after_bytes] = np.frombuffer(begin, np.uint8)
        meddle, self.meddle = self.meddle, lambda: None
        meddle()
        end = source[self.after_bytes :].tobytes()
        into[self.after_bytes :] = np.frombuffer(end, np.uint8)
        return checksum_of(memoryview(begin + end))


def die() -> None:
    raise Interrupted


def test_a_block_is_read_as_it_was_put():
    arena, reservation = make_arena(), make_reservation("a", slab=1)
    assert put(arena, reservation, "a")
    assert read(arena, place_of(reservation)) == content("a").tobytes()


def test_a_shorter_block_is_read_as_it_was_put():
    arena, reservation = make_arena(), make_reservation("a")
    arena.mark_reserved(reservation)
    assert arena.put([reservation], [content("a", 17)], 0) == [True]
    assert read(arena, place_of(reservation)) == content("a", 17).tobytes()


def test_slabs_do_not_touch_each_other():
    arena = make_arena(3)
    reservations = [make_reservation(str(i), slab=i, generation=i) for i in range(3)]
    assert all(put(arena, each, str(i)) for i, each in enumerate(reservations))
    for i, each in enumerate(reservations):
        assert read(arena, place_of(each)) == content(str(i)).tobytes()


def test_of_many_blocks_those_are_written_whose_reservation_holds():
    arena = make_arena()
    late = make_reservation("a", slab=0, generation=0, deadline_s=1)
    other = make_reservation("b", slab=1, generation=1)
    own = make_reservation("c", slab=2, generation=2)
    for each in (late, own, make_reservation("d", slab=1, generation=3)):
        arena.mark_reserved(each)
    blocks = list(map(content, "abc"))
    assert arena.put([late, other, own], blocks, 2) == [False, False, True]
    assert read(arena, place_of(own)) == content("c").tobytes()
    assert read(arena, place_of(late)) is None
    assert read(arena, place_of(other)) is None


@pytest.mark.parametrize("num_whole", [0, 1, 2, 3])
def test_blocks_are_read_up_to_the_first_that_is_a_miss(num_whole: int):
    geometry = make_geometry()
    memory = bytearray(geometry.total_bytes)
    arena = Arena(memory, geometry)
    reservations = [make_reservation(str(i), slab=i, generation=i) for i in range(3)]
    assert all(put(arena, each, str(i)) for i, each in enumerate(reservations))
    if num_whole < 3:
        memory[geometry.payload_start(num_whole) + 7] ^= 1
    rooms = [memoryview(bytearray(5000)) for _ in reservations]
    filled = arena.read_into(list(map(place_of, reservations)), rooms)
    assert filled == [content(str(i)) for i in range(num_whole)]


def test_blocks_are_not_read_behind_one_that_is_not_there():
    arena = make_arena()
    first, last = make_reservation("a"), make_reservation("c", slab=2)
    put(arena, first, "a")
    put(arena, last, "c")
    places = list(map(place_of, (first, make_reservation("b", slab=1), last)))
    rooms = [memoryview(bytearray(5000)) for _ in places]
    assert arena.read_into(places, rooms) == [content("a")]


def test_any_buffer_can_be_source_and_destination():
    arena, reservation = make_arena(), make_reservation("a")
    values = np.arange(600, dtype=np.float32).reshape(20, 30)
    arena.mark_reserved(reservation)
    assert arena.put([reservation], [values.data], 0) == [True]
    into = np.empty_like(values)
    (filled,) = arena.read_into([place_of(reservation)], [into.data.cast("B")])
    assert filled.nbytes == values.nbytes
    assert (into == values).all()


def test_a_block_that_does_not_fit_is_caught():
    arena, reservation = make_arena(), make_reservation("a")
    arena.mark_reserved(reservation)
    with pytest.raises(AssertionError, match="5001 bytes"):
        arena.put([reservation], [content("a", 5001)], 0)


def test_another_key_or_generation_is_a_miss():
    arena, reservation = make_arena(), make_reservation("a")
    put(arena, reservation, "a")
    location = place_of(reservation)
    assert read(arena, replace(location, generation=8)) is None
    assert read(arena, replace(location, key=make_reservation("b").request.key)) is None
    assert read(arena, replace(location, slab=1)) is None


def test_a_reserved_slab_has_nobody_s_bytes():
    arena, old, new = make_arena(), make_reservation("a"), make_reservation("b", generation=8)
    put(arena, old, "a")
    arena.mark_reserved(new)
    assert read(arena, place_of(old)) is None
    assert read(arena, place_of(new)) is None


@pytest.mark.parametrize("position", [0, 2500, 4999])
def test_a_flipped_byte_is_a_miss(position: int):
    geometry = make_geometry()
    memory = bytearray(geometry.total_bytes)
    arena, reservation = Arena(memory, geometry), make_reservation("a", slab=1)
    put(arena, reservation, "a")
    memory[geometry.payload_start(1) + position] ^= 16
    assert read(arena, place_of(reservation)) is None


def test_a_writer_does_not_begin_after_its_deadline():
    arena, reservation = make_arena(), make_reservation("a", deadline_s=10)
    arena.mark_reserved(reservation)
    assert arena.put([reservation], [content("a")], 10) == [False]
    assert arena.put([reservation], [content("a")], 9.9) == [True]


def test_a_writer_does_not_begin_in_a_slab_that_is_another_s():
    arena, old, new = make_arena(), make_reservation("a"), make_reservation("b", generation=8)
    arena.mark_reserved(old)
    assert put(arena, new, "b")
    assert arena.put([old], [content("a")], 0) == [False]
    assert read(arena, place_of(new)) == content("b").tobytes()


def test_a_slab_whose_writer_died_has_nobody_s_bytes():
    meddler = Meddler()
    arena, reservation = make_arena(copy=meddler), make_reservation("a")
    meddler.after_bytes, meddler.meddle = 3000, die
    with pytest.raises(Interrupted):
        put(arena, reservation, "a")
    assert read(arena, place_of(reservation)) is None
    assert [record.mark for record in arena.scan()] == [SlabMark.RESERVED, *[SlabMark.EMPTY] * 2]


@pytest.mark.parametrize("after_bytes", [0, 1, 3000, 5000])
def test_a_writer_that_comes_too_late_says_nothing_and_is_a_miss_to_others(after_bytes: int):
    """Its slab is given away, and written, in the middle of its copy."""
    meddler = Meddler()
    arena, old, new = (
        make_arena(copy=meddler),
        make_reservation("a"),
        make_reservation("b", generation=8),
    )
    meddler.after_bytes, meddler.meddle = after_bytes, lambda: put(arena, new, "b")
    assert not put(arena, old, "a")
    assert read(arena, place_of(old)) is None
    expected = content("b").tobytes() if after_bytes == 5000 else None
    assert read(arena, place_of(new)) == expected


@pytest.mark.parametrize("after_bytes", [0, 1, 3000, 5000])
def test_a_slab_that_changes_under_the_reader_is_a_miss(after_bytes: int):
    meddler = Meddler()
    arena, old, new = (
        make_arena(copy=meddler),
        make_reservation("a"),
        make_reservation("b", generation=8),
    )
    put(arena, old, "a")
    meddler.after_bytes, meddler.meddle = after_bytes, lambda: put(arena, new, "b")
    assert read(arena, place_of(old)) is None
    assert read(arena, place_of(new)) == content("b").tobytes()


def test_the_checksum_is_of_the_source_not_of_the_slab():
    """Else bytes that a late writer leaves would become the new block's."""
    meddler = Meddler()
    geometry = make_geometry()
    memory = bytearray(geometry.total_bytes)
    arena, reservation = Arena(memory, geometry, meddler), make_reservation("a")

    def scribble() -> None:
        memory[geometry.payload_start(0)] ^= 1

    meddler.after_bytes, meddler.meddle = 5000, scribble
    assert put(arena, reservation, "a")
    assert read(arena, place_of(reservation)) is None


def test_a_scan_finds_every_slab_s_header():
    arena = make_arena(4)
    whole, begun = make_reservation("a", slab=1, parent="p"), make_reservation("b", slab=2)
    put(arena, whole, "a")
    arena.mark_reserved(begun)
    records = list(arena.scan())
    assert [record.slab for record in records] == [0, 1, 2, 3]
    marks = [SlabMark.EMPTY, SlabMark.READY, SlabMark.RESERVED, SlabMark.EMPTY]
    assert [record.mark for record in records] == marks
    assert records[1].header is not None
    assert records[1].header.request == whole.request
    assert records[1].header.num_bytes == 5000
    assert records[2].header is not None
    assert records[2].header.deadline_s == begun.deadline_s
