"""Memory that bytes of files pass through: allocated once, page-aligned, lent and given back."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue

from rtp_serve.loader.read_plan import ALIGNMENT

_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


class StagingRing:
    """Buffers of one size. Whoever takes one waits until there is one.

    The memory goes back to the system with the last reference to the ring or one of its buffers.
    """

    def __init__(self, num_buffers: int, buffer_bytes: int) -> None:
        """`buffer_bytes` is a multiple of `ALIGNMENT`. Memory is touched on first use."""
        assert num_buffers > 0, f"{num_buffers} buffers"
        assert buffer_bytes > 0, f"buffers of {buffer_bytes} bytes"
        assert buffer_bytes % ALIGNMENT == 0, f"{buffer_bytes} is no multiple of {ALIGNMENT}"
        memory = mmap.mmap(-1, num_buffers * buffer_bytes, flags=_PRIVATE)
        with suppress(OSError):  # a system without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)  # a disk's request then has few, large segments
        self._free: SimpleQueue[memoryview] = SimpleQueue()
        whole = memoryview(memory)
        for start in range(0, num_buffers * buffer_bytes, buffer_bytes):
            self._free.put(whole[start : start + buffer_bytes])

    @contextmanager
    def buffer(self) -> Iterator[memoryview]:
        """A buffer until the block ends. Nothing may refer to its memory after that."""
        buffer = self._free.get()
        try:
            yield buffer
        finally:
            self._free.put(buffer)

    @property
    def num_free(self) -> int:
        """Buffers that nobody has."""
        return self._free.qsize()
