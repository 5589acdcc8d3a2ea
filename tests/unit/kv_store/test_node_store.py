"""A node's store: arena and disk answer as one, and what is new goes to the disk."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from rtp_serve.clock import VirtualClock, WallClock
from rtp_serve.kv_store.arena import Arena
from rtp_serve.kv_store.disk.file_io import FileIO
from rtp_serve.kv_store.disk.reader import DiskReader, ReadOutcome
from rtp_serve.kv_store.disk.settings import DiskSettings
from rtp_serve.kv_store.disk.tier import DiskTier
from rtp_serve.kv_store.eviction.lru import LRU
from rtp_serve.kv_store.index_stats import SlabState
from rtp_serve.kv_store.member import member_name
from rtp_serve.kv_store.node_store import NodeStore
from rtp_serve.kv_store.pace import Pace
from rtp_serve.kv_store.pin_file import PinFile
from rtp_serve.kv_store.reservation import Reservation, StoreRequest
from tests.unit.kv_store.arenas import content, make_arena, make_key
from tests.unit.kv_store.blocks import TAG

NAMES = ("a", "b", "c", "d")
CHAIN = [make_key(name) for name in NAMES]
OWNER = member_name()


def open_store(arena: Arena, disk: Path | None, epoch: int = 1) -> NodeStore:
    tier = DiskTier(disk, DiskSettings(8 << 20), WallClock()) if disk else None
    return NodeStore(arena, epoch, LRU(arena.geometry.num_slabs), WallClock(), tier)


def store_chain(store: NodeStore, arena: Arena, names: Sequence[str] = NAMES) -> list[Reservation]:
    parents = [None, *map(make_key, names)]
    requests = [
        StoreRequest(make_key(name), parent, "tenant", TAG)
        for name, parent in zip(names, parents, strict=False)
    ]
    reservations = [each for each in store.reserve(requests, OWNER)
                    if isinstance(each, Reservation)]  # fmt: skip
    for each in reservations:
        name = each.request.key.decode().rstrip(".")
        assert arena.put([each], [content(name)], WallClock().monotonic()) == [True]
    store.complete(reservations)
    return reservations


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "disk"


def test_what_was_stored_is_found_and_held(disk: Path):
    arena = make_arena(8)
    with open_store(arena, disk) as store:
        store_chain(store, arena)
        while store.stats().num_to_spill:
            threading.Event().wait(0.002)
        found = store.find(CHAIN, OWNER)
        assert len(found) == 4
        assert found.on_disk == ()
        assert store.stats().host.slabs_by_state[SlabState.LEASED] == 4
        store.release(found.lease.lease_id)
        assert store.stats().host.slabs_by_state[SlabState.LEASED] == 0


def test_what_the_arena_dropped_is_found_on_the_disk_after_what_it_has(disk: Path):
    arena = make_arena(8)
    store = open_store(arena, disk)
    store_chain(store, arena)
    store.close()  # all is written
    with open_store(arena, disk, epoch=2) as store:
        store.trim(2 * arena.geometry.slab_bytes)
        found = store.find(CHAIN, OWNER)
        assert [each.key for each in found.lease.locations] == CHAIN[:2]
        assert [each.key for each in found.on_disk] == CHAIN[2:]
        store.release(found.lease.lease_id)
        buffers = [memoryview(bytearray(5000)) for _ in found.on_disk]
        reader = DiskReader(disk)
        assert reader.read(found.on_disk, buffers) == [ReadOutcome.HIT] * 2
        assert buffers[0] == content("c")
        reader.close()


def test_a_restart_has_it_all(disk: Path):
    arena = make_arena(8)
    store = open_store(arena, disk)
    store_chain(store, arena)
    store.close()
    with open_store(make_arena(8), disk) as store:
        found = store.find(CHAIN, OWNER)
        assert [each.key for each in found.on_disk] == CHAIN
        assert store.stats().disk is not None


def test_what_waits_for_a_slow_disk_is_held_until_it_is_written(disk: Path):
    may_write, arena = threading.Event(), make_arena(8)
    clock = virtual_clock()

    def write(descriptor: int, buffers: Sequence[memoryview], position: int) -> int:
        may_write.wait()
        return os.pwritev(descriptor, buffers, position)

    tier = DiskTier(disk, DiskSettings(8 << 20), clock, FileIO(write=write))
    with NodeStore(arena, 1, LRU(8), clock, tier) as store:
        store_chain(store, arena)
        clock.advance(3600)
        crowd = [StoreRequest(make_key(f"x{i}"), None, "tenant", TAG) for i in range(8)]
        answers = store.reserve(crowd, OWNER)
        assert sum(isinstance(each, Reservation) for each in answers) == 4
        may_write.set()
        while store.stats().num_to_spill:
            threading.Event().wait(0.002)
        assert store.stats().num_not_spilled == 0
    with open_store(make_arena(8), disk) as store:
        assert [each.key for each in store.find(CHAIN, OWNER).on_disk] == CHAIN


def test_a_new_index_finds_the_arena_as_it_was():
    arena = make_arena(8)
    store_chain(store := open_store(arena, None), arena)
    store.close()
    with open_store(arena, None, epoch=2) as store:
        assert len(store.find(CHAIN, OWNER)) == 4


def test_a_slab_that_changed_before_it_was_written_is_not_written_wrongly(disk: Path):
    arena = make_arena(4)
    store = open_store(arena, disk)
    reservations = store_chain(store, arena, ("a",))
    arena._payloads[reservations[0].slab] ^= 255
    store_chain(store, arena, ("a", "b"))
    store.close()
    with open_store(make_arena(4), disk) as store:
        for location in store.find(CHAIN, OWNER).on_disk:
            buffer = memoryview(bytearray(5000))
            reader = DiskReader(disk)
            if reader.read([location], [buffer]) == [ReadOutcome.HIT]:
                assert buffer == content(location.key.decode().rstrip("."))
            reader.close()


def test_what_the_dead_held_is_given_back():
    arena = make_arena(8)
    with open_store(arena, None) as store:
        store_chain(store, arena)
        dead = "process-999999999-1"
        store.find(CHAIN[:2], dead)
        store.reserve([StoreRequest(make_key("e"), CHAIN[-1], "tenant", TAG)], dead)
        store.end_the_dead()
        slabs = store.stats().host.slabs_by_state
        assert slabs[SlabState.LEASED] == 0
        assert slabs[SlabState.RESERVED] == 0
        store.check_invariants()


def test_a_tenant_keeps_its_share():
    arena = make_arena(8)
    with NodeStore(arena, 1, LRU(8), WallClock(), quotas={"tenant": 3}) as store:
        store_chain(store, arena, ("a", "b", "c"))
        crowd = [make_key(f"x{i}") for i in range(20)]
        for key in crowd:
            store.complete(
                [
                    each
                    for each in store.reserve([StoreRequest(key, None, "other", TAG)], OWNER)
                    if isinstance(each, Reservation)
                ]
            )
        assert len(store.find(CHAIN[:3], OWNER)) == 3


def virtual_clock() -> VirtualClock:
    """Of the present, as reservations are made by it."""
    return VirtualClock(WallClock().monotonic())


def reopen(arena: Arena, pin_file: PinFile, clock: VirtualClock, epoch: int) -> NodeStore:
    return NodeStore(arena, epoch, LRU(16), clock, pin_file=pin_file)


def test_pins_outlive_the_store_and_not_their_time(tmp_path: Path):
    arena, clock, pins = make_arena(16), virtual_clock(), PinFile(tmp_path / "x.arena")
    with reopen(arena, pins, clock, 1) as first:
        store_chain(first, arena)
        assert first.pin(CHAIN[:2], "application", clock.monotonic() + 60) == 2
        assert first.pin(CHAIN[:3], OWNER, None) == 3
    with reopen(arena, pins, clock, 2) as second:
        assert second.stats().host.num_pins == 5
        second.check_invariants()
        assert second.trim(1 << 30) == arena.geometry.slab_bytes
        assert second.pin(CHAIN[:2], "application", clock.monotonic() + 90) == 2
    clock.advance(70.0)
    with reopen(arena, pins, clock, 3) as third:
        assert third.stats().host.num_pins == 5, "a new time counts"
    clock.advance(70.0)
    with reopen(arena, pins, clock, 4) as fourth:
        assert fourth.stats().host.num_pins == 3


def test_pins_of_blocks_that_are_gone_are_forgotten(tmp_path: Path):
    clock, pins = virtual_clock(), PinFile(tmp_path / "x.arena")
    arena = make_arena(16)
    with reopen(arena, pins, clock, 1) as store:
        store_chain(store, arena)
        store.pin(CHAIN, "application", None)
    with reopen(make_arena(16), pins, clock, 1) as store:
        assert store.stats().host.num_pins == 0


def test_a_pin_file_that_cannot_be_read_is_no_pins(tmp_path: Path):
    (tmp_path / "damaged.pins").write_bytes(b"\x93\x01")
    (tmp_path / "directory.pins").mkdir()
    (tmp_path / "link.pins").symlink_to("/etc/passwd")
    for name in ("damaged", "directory", "link", "missing"):
        assert PinFile(tmp_path / f"{name}.arena").read() == []


def test_a_pin_file_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    arena, clock = make_arena(16), virtual_clock()
    with reopen(arena, PinFile(tmp_path / "gone" / "x.arena"), clock, 1) as store:
        store_chain(store, arena)
        assert store.pin(CHAIN, "application", None) == 4
        assert store.stats().host.num_pins == 4
    assert "pins will not outlive the store" in caplog.text


def test_the_disk_is_written_at_a_pace_only_while_somebody_decodes(
    disk: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Pace, "pause_s", lambda pace: 3600.0)
    arena = make_arena(64)
    names = [f"n{i}" for i in range(20)]
    with open_store(arena, disk) as store:
        store.note_decoding(OWNER, is_decoding=True)
        store_chain(store, arena, names)
        while store.stats().num_to_spill == len(names):
            threading.Event().wait(0.002)
        assert store.stats().num_to_spill > 0, "the first batch was to be the last for an hour"
        store.note_decoding(OWNER, is_decoding=False)
        while store.stats().num_to_spill:
            threading.Event().wait(0.002)
        assert [each.key for each in store.find([*map(make_key, names)], OWNER).lease.locations]
