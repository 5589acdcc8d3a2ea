"""Zeroed memory that is there at once; its pages are taken beside the first steps.

Zeroing a gigabyte takes half a second, in which a replica could already answer. The system gives
zeros with the first touch of a page; a thread of low priority makes it for all of them, so that
steps soon find none that is new and a machine with too little memory says so early.
"""

import ctypes
import mmap
import os
import threading
from contextlib import suppress

_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE, from Linux 5.14 on: take pages without changing what is in them."""

_SLICE_BYTES = 256 << 10
"""Asked for at a time: meanwhile no thread of the process can map or unmap memory, and a virtual
machine may take milliseconds to find a huge page. At 8 MiB the first forward waited 30 ms more."""
_LOWEST_PRIORITY = 19


def zeroed(num_bytes: int) -> mmap.mmap:
    """Private memory, writable; it lives as long as somebody holds the region.

    On huge pages where the system has them: a sequence's blocks lie far apart, and looking up a
    page of 4 KiB for each costs attention a fifth of its rate.
    """
    region = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        region.madvise(mmap.MADV_HUGEPAGE)
    threading.Thread(target=_take_pages, args=(region,), name="kv-memory", daemon=True).start()
    return region


def _take_pages(region: mmap.mmap) -> None:
    # On Linux this is the priority of the thread alone.
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
    take_pages(region)


def take_pages(region: mmap.mmap) -> bool:
    """Give every page of the region memory; False where the system cannot, and steps will."""
    madvise = ctypes.CDLL(None).madvise  # mmap's own holds the interpreter
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    start = ctypes.addressof(ctypes.c_char.from_buffer(region))
    for offset in range(0, len(region), _SLICE_BYTES):
        size = min(_SLICE_BYTES, len(region) - offset)
        if madvise(start + offset, size, _POPULATE_WRITE) != 0:
            return False
    return True
