"""Whole pages, which is all that direct I/O knows: sizes, and memory at page boundaries."""

import mmap
from contextlib import suppress

import numpy as np

PAGE_BYTES = 4096

_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def rounded_up(num_bytes: int) -> int:
    """To whole pages."""
    return -(-num_bytes // PAGE_BYTES) * PAGE_BYTES


def allocate(num_bytes: int) -> memoryview:
    """Zeros, on whole pages; they go back to the system with the last reference."""
    memory = mmap.mmap(-1, num_bytes, flags=_PRIVATE)
    with suppress(OSError):  # a system without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)  # a disk's request then has few, large segments
    return memoryview(memory)


def is_aligned(buffer: memoryview) -> bool:
    """Whether the disk can read or write it directly."""
    address: int = np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
    return address % PAGE_BYTES == 0 and buffer.nbytes % PAGE_BYTES == 0
