"""A replica's slots where other processes of its node can see them."""

import mmap

from rtp_serve.disaggregation.protocol import SlotsDescriptor
from rtp_serve.disaggregation.transport.slots import Slots, slots_bytes
from rtp_serve.errors import SharedMemoryUnavailable
from rtp_serve.native.shared_file import SharedFile

NUM_SLOTS = 1024
"""Prompts that a replica can hold for others at once."""


def make_slots(name: str) -> tuple[Slots, SlotsDescriptor | None]:
    """The slots, and how they are found; None where there is no shared memory."""
    num_bytes = slots_bytes(NUM_SLOTS)
    try:
        file = SharedFile(name, num_bytes)
    except SharedMemoryUnavailable:
        return Slots(memoryview(bytearray(num_bytes))), None
    try:
        region = mmap.mmap(file.descriptor, num_bytes)
    finally:
        file.close()
    return Slots(memoryview(region)), SlotsDescriptor(name, NUM_SLOTS)
