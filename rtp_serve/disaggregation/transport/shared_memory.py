"""A prefill replica of the same node, whose KV memory and slots are files of shared memory.

They are mapped for reading: nobody but a replica itself ever writes its blocks. The mapping keeps
the memory, not the process: a replica that died leaves its slots as they were, so whatever it had
published is still good and stays so.
"""

from pathlib import Path

from rtp_serve.disaggregation.protocol import MemoryDescriptor
from rtp_serve.disaggregation.transport.parts import BlockCopier, KVParts, part_of
from rtp_serve.disaggregation.transport.published import PublishedBlocks
from rtp_serve.disaggregation.transport.slots import Slot, SlotReader, slots_bytes
from rtp_serve.errors import WrongLayout
from rtp_serve.native.shared_file import SHARED_MEMORY, map_for_reading


class SharedMemoryPeer:
    """A `Peer`."""

    def __init__(
        self,
        there: MemoryDescriptor,
        here: MemoryDescriptor,
        target: KVParts,
        root: Path = SHARED_MEMORY,
    ) -> None:
        """`target` is this replica's memory, which `here` describes.

        Raises WrongLayout if blocks of the two cannot be exchanged, SharedMemoryUnavailable if the
        files are not there, as on another node.
        """
        if there.layout_digest != here.layout_digest:
            raise WrongLayout(f"blocks there are {there}, here {here}")
        if there.slots is None or not there.parts:
            raise WrongLayout("the memory there cannot be mapped")
        parts = (
            part_of(map_for_reading(part.file, part.num_bytes, root), there, part.heads)
            for part in there.parts
        )
        self._copier = BlockCopier(KVParts(tuple(parts)), target)
        num_bytes = slots_bytes(there.slots.num_slots)
        self._slots = SlotReader(memoryview(map_for_reading(there.slots.file, num_bytes, root)))

    def source(self, slot: Slot) -> PublishedBlocks:
        return PublishedBlocks(self._copier, self._slots, slot)

    def close(self) -> None:
        """The mappings go with the last reference to them."""
