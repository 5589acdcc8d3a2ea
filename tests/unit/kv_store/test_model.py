"""All that can happen between a writer or two, a reader and the index's owner, step by step."""

import re
from dataclasses import replace

import pytest

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.arena import Arena
from rtp_serve.kv_store.arena_geometry import ArenaGeometry
from tests.unit.kv_store.model import World, explore, request
from tests.unit.kv_store.model_actors import Actor, Budget, Faults, Reader, Violation, Writer

A, B, C = (BlockHash(name * 16) for name in (b"Aa", b"Bb", b"Cc"))
A_PUT, B_PUT, C_PUT = (request(key) for key in (A, B, C))
A_READER = Reader("r", ((A,), (B,)))


def make_world(
    num_slabs: int, *actors: Actor, ticks: int = 0, deaths: int = 0, restarts: int = 0
) -> World:
    return World(num_slabs, actors, Budget(ticks, deaths, restarts), Faults())


def two_writers(**budget: int) -> World:
    """For one slab: when the first is too late, the second gets it."""
    return make_world(1, Writer("w", ((A_PUT,),)), Writer("v", ((B_PUT,),)), **budget)


def writer_and_reader(**budget: int) -> World:
    """The second block takes the slab of the first, which somebody may be reading."""
    return make_world(1, Writer("w", ((A_PUT,), (B_PUT,))), A_READER, **budget)


def chain_and_reader(**budget: int) -> World:
    """A chain of two blocks fills the arena, and another block comes."""
    writer = Writer("w", ((A_PUT, request(B, A)), (C_PUT,)))
    return make_world(2, writer, Reader("r", ((A, B),)), **budget)


def disturbed_reader(**budget: int) -> World:
    """Two writers and a reader of what either stores."""
    writers = Writer("w", ((A_PUT,),)), Writer("v", ((B_PUT,),))
    return make_world(1, *writers, A_READER, **budget)


@pytest.mark.parametrize(
    ("start", "min_states"),
    [
        (two_writers(ticks=3, deaths=1), 4000),
        (two_writers(ticks=3, restarts=1), 10000),
        (writer_and_reader(ticks=1, deaths=1, restarts=1), 5000),
        (chain_and_reader(ticks=1, deaths=1), 1500),
        (chain_and_reader(ticks=1, restarts=1), 3000),
        (disturbed_reader(ticks=3), 10000),
    ],
)
def test_no_order_of_steps_and_deaths_gives_wrong_bytes_or_loses_a_slab(
    start: World, min_states: int
):
    assert explore(start) > min_states


@pytest.mark.parametrize(
    ("faults", "start", "violation"),
    [
        (Faults(checksum_of_slab=True), two_writers(ticks=3), "has b'Ba' for b'Aa'"),
        (Faults(no_checksum=True), disturbed_reader(ticks=3), "r was given"),
        (Faults(no_quarantine=True), two_writers(ticks=3), "may be writing into slab 0"),
        (Faults(no_marks=True), two_writers(restarts=1), "may be writing into slab 0"),
        (
            Faults(same_epoch=True),
            make_world(1, Writer("w", ((A_PUT,), (B_PUT,), (A_PUT,))), ticks=2, restarts=1),
            "was given twice",
        ),
    ],
    ids=lambda value: repr(value) if isinstance(value, Faults) else "",
)
def test_each_precaution_is_needed(faults: Faults, start: World, violation: str):
    """Without it the explorer finds the steps that lead to harm."""
    careless = World(len(start.memory), start.actors, start.budget, faults)
    with pytest.raises(Violation, match=re.escape(violation)):
        explore(careless)


def test_the_model_writes_what_the_arena_writes():
    world = two_writers()
    writer, order = world.actors[0], []
    while world.actors[0].step != "complete":
        name, take = next(world.steps())
        order.append(name)
        take(world)
    assert isinstance(world.actors[0], Writer)
    (reservation,) = world.actors[0].reservations
    geometry = ArenaGeometry(2, 1, bytes(32))
    memory = bytearray(geometry.total_bytes)
    arena = Arena(memory, geometry)
    arena.mark_reserved(reservation)
    assert arena.put([reservation], [memoryview(A[:2])], world.now_s) == [True]
    header = memory[geometry.header_start(0) : geometry.header_start(1)]
    payload = memory[geometry.payload_start(0) : geometry.payload_start(0) + 2]
    assert header == b"".join(world.memory[0].header)
    assert payload == b"".join(world.memory[0].payload)
    steps = ("reserve", "check", "low", "high", "seal", "sealed")
    assert order == [f"{writer.name}: {step}" for step in steps]


def test_the_explorer_sees_a_leak():
    world = two_writers()
    later = world.copy()
    later.index._ledger.slabs.take()
    with pytest.raises(AssertionError, match="slabs are"):
        later.check(world)


def test_copies_of_a_world_share_nothing_that_changes():
    world = writer_and_reader(ticks=1, deaths=1, restarts=1)
    before = world.state()
    waiting = [world]
    for _ in range(30):
        current = waiting.pop()
        state = current.state()
        for _, take in current.steps():
            after = current.copy()
            take(after)
            waiting.append(after)
        assert current.copy().state() == state == replace_nothing(current).state()
    assert world.state() == before


def replace_nothing(world: World) -> World:
    """A copy that has made its own index."""
    copy = world.copy()
    if copy.is_index_alive:
        assert copy.index is not world._index
    copy.budget = replace(copy.budget)
    return copy
