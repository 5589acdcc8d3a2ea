"""The bytes of a device's blocks, as tiers below it read and fill them.

One rank's block is one piece of memory, and is read and filled where it is. Where several ranks
have a part each, tiers see the parts one behind the other, in order of rank, in other memory.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from rtp_serve.kv_store.disk.pages import allocate, rounded_up


class DeviceBlocks(Protocol):
    """Used by several threads, each for blocks that nobody else writes meanwhile."""

    def read(self, block_id: int) -> memoryview:
        """A block's bytes."""
        ...

    def room(self, block_id: int) -> memoryview:
        """Writable memory of a block's size, to be filled and then handed to `fill`."""
        ...

    def fill(self, block_id: int, filled: memoryview) -> None:
        """The block has what is in its room now."""
        ...


class WholeBlocks:
    """Of one rank."""

    def __init__(self, block: Callable[[int], memoryview]) -> None:
        """`block` gives a block's bytes, writable."""
        self._block = block

    def read(self, block_id: int) -> memoryview:
        return self._block(block_id)

    def room(self, block_id: int) -> memoryview:
        return self._block(block_id)

    def fill(self, block_id: int, filled: memoryview) -> None:
        """It is there already."""


class DividedBlocks:
    """Of several ranks, whose memory this process has mapped."""

    def __init__(self, parts: Sequence[Callable[[int], memoryview]]) -> None:
        """Each gives the bytes of a rank's part of a block, writable, in order of rank."""
        self._parts = parts
        self._num_bytes = sum(part(0).nbytes for part in parts)

    def read(self, block_id: int) -> memoryview:
        room = self.room(block_id)
        offset = 0
        for part in self._parts:
            piece = part(block_id)
            room[offset : offset + piece.nbytes] = piece
            offset += piece.nbytes
        return room

    def room(self, block_id: int) -> memoryview:
        return allocate(rounded_up(self._num_bytes))[: self._num_bytes]

    def fill(self, block_id: int, filled: memoryview) -> None:
        offset = 0
        for part in self._parts:
            piece = part(block_id)
            piece[:] = filled[offset : offset + piece.nbytes]
            offset += piece.nbytes
