"""Every way of bringing blocks: same bytes, and none that were given back."""

import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rtp_serve.disaggregation.protocol import (
    MemoryDescriptor,
    PartDescriptor,
    SlotsDescriptor,
)
from rtp_serve.disaggregation.transport.base import Peer
from rtp_serve.disaggregation.transport.in_process import InProcessPeer
from rtp_serve.disaggregation.transport.parts import BlockCopier, KVParts, part_of
from rtp_serve.disaggregation.transport.published import PublishedBlocks
from rtp_serve.disaggregation.transport.shared_memory import SharedMemoryPeer
from rtp_serve.disaggregation.transport.slots import SlotReader, Slots, slots_bytes
from rtp_serve.errors import SharedMemoryUnavailable, WrongLayout
from rtp_serve.native.shared_file import SharedFile
from tests.unit.disaggregation.memories import (
    HALVES,
    MEMORY,
    NUM_BLOCKS,
    NUM_LAYERS,
    SPEC,
    content,
    empty,
    has,
    write,
)

NUM_SLOTS = 3
ALL = (0, NUM_LAYERS)


@dataclass
class Prefill:
    """The side that publishes."""

    memory: KVParts
    slots: Slots
    connect: Callable[[KVParts], Peer]


def in_process(_: Path) -> Prefill:
    memory, words = empty(HALVES), memoryview(bytearray(slots_bytes(NUM_SLOTS)))
    return Prefill(memory, Slots(words), lambda target: InProcessPeer(memory, words, target))


def shared(root: Path) -> Prefill:
    there = publish(root)
    memory = KVParts(
        tuple(part_of(open_memory(root, p.file, p.num_bytes), there, p.heads) for p in there.parts)
    )
    words = open_memory(root, "slots", slots_bytes(NUM_SLOTS))
    return Prefill(
        memory,
        Slots(memoryview(words)),
        lambda target: SharedMemoryPeer(there, MEMORY, target, root),
    )


def publish(root: Path) -> MemoryDescriptor:
    num_bytes = SPEC.block_bytes * NUM_BLOCKS // 2
    parts = tuple(
        PartDescriptor(f"part-{rank}", num_bytes, heads) for rank, heads in enumerate(HALVES)
    )
    slots = SlotsDescriptor("slots", NUM_SLOTS)
    return msgspec.structs.replace(MEMORY, parts=parts, slots=slots)


def open_memory(root: Path, name: str, num_bytes: int) -> mmap.mmap:
    file = SharedFile(name, num_bytes, root)
    try:
        return mmap.mmap(file.descriptor, num_bytes)
    finally:
        file.close()


@pytest.fixture(params=[in_process, shared], ids=["in_process", "shared_memory"])
def prefill(request: pytest.FixtureRequest, tmp_path: Path) -> Prefill:
    return request.param(tmp_path)


def test_published_blocks_come_over(prefill: Prefill):
    target = empty()
    slot = prefill.slots.allocate()
    assert slot is not None
    source = prefill.connect(target).source(slot)
    write(prefill.memory, 4, content(1), ALL)
    assert source.copy((4,), (2,), (0, 2))
    assert source.copy((4,), (2,), (2, NUM_LAYERS))
    assert has(target, 2, 1)


def test_what_was_given_back_is_no_use_ever_again(prefill: Prefill):
    slot = prefill.slots.allocate()
    assert slot is not None
    source = prefill.connect(empty()).source(slot)
    assert source.is_valid()
    prefill.slots.retire(slot)
    assert not source.copy((4,), (2,), ALL)
    again = prefill.slots.allocate()
    assert again is not None
    assert again.number == slot.number
    assert not source.is_valid(), "the slot's next user is another publication"


def test_blocks_that_are_given_back_while_they_are_copied_are_noticed():
    words = memoryview(bytearray(slots_bytes(NUM_SLOTS)))
    slots = Slots(words)
    slot = slots.allocate()
    assert slot is not None

    class GivenBackMeanwhile(BlockCopier):
        def copy(self, *pairs: Any) -> None:
            super().copy(*pairs)
            slots.retire(slot)

    copier = GivenBackMeanwhile(empty(), empty())
    source = PublishedBlocks(copier, SlotReader(words), slot)
    assert not source.copy((4,), (2,), ALL)


def test_memory_of_another_layout_is_not_mapped(tmp_path: Path):
    there = msgspec.structs.replace(publish(tmp_path), tile_bytes=8)
    with pytest.raises(WrongLayout):
        SharedMemoryPeer(there, MEMORY, empty(), tmp_path)


def test_the_layout_is_the_same_however_heads_and_blocks_are_divided(tmp_path: Path):
    there = publish(tmp_path)
    assert there.layout_digest == MEMORY.layout_digest
    fewer = msgspec.structs.replace(there, num_blocks=1)
    assert fewer.layout_digest == MEMORY.layout_digest
    for change in ({"num_layers": 5}, {"num_kv_heads": 8}, {"tile_order": "words"}):
        other = msgspec.structs.replace(there, **change)
        assert other.layout_digest != MEMORY.layout_digest


@pytest.mark.parametrize("name", ["../part-0", "nobody's", "", "absent"])
def test_a_name_that_means_nothing_is_an_error(tmp_path: Path, name: str):
    there = publish(tmp_path)
    parts = (msgspec.structs.replace(there.parts[0], file=name), there.parts[1])
    with pytest.raises(SharedMemoryUnavailable):
        SharedMemoryPeer(msgspec.structs.replace(there, parts=parts), MEMORY, empty(), tmp_path)


def test_memory_of_another_length_or_of_the_dead_is_not_mapped(tmp_path: Path):
    there = publish(tmp_path)
    held = open_memory(tmp_path, "part-0", there.parts[0].num_bytes + 1)
    with pytest.raises(SharedMemoryUnavailable, match="bytes"):
        SharedMemoryPeer(there, MEMORY, empty(), tmp_path)
    held.close()
    with pytest.raises(SharedMemoryUnavailable, match="died"):
        SharedMemoryPeer(there, MEMORY, empty(), tmp_path)
    assert not os.listdir(tmp_path)


def test_mapped_memory_outlives_its_maker(tmp_path: Path):
    prefill = shared(tmp_path)
    write(prefill.memory, 1, content(3), ALL)
    slot = prefill.slots.allocate()
    assert slot is not None
    target = empty()
    source = prefill.connect(target).source(slot)
    del prefill
    assert source.copy((1,), (0,), ALL)
    assert has(target, 0, 3)


def test_slots_are_few_and_each_is_retired_once():
    slots = Slots(memoryview(bytearray(slots_bytes(1))))
    slot = slots.allocate()
    assert slot is not None
    assert slots.allocate() is None
    slots.retire(slot)
    with pytest.raises(AssertionError, match="not in use"):
        slots.retire(slot)
    assert slots.num_free == 1
