"""Two replicas in one process; for tests and for engines that share one."""

from rtp_serve.disaggregation.transport.parts import BlockCopier, KVParts
from rtp_serve.disaggregation.transport.published import PublishedBlocks
from rtp_serve.disaggregation.transport.slots import Slot, SlotReader


class InProcessPeer:
    """A `Peer`."""

    def __init__(self, memory: KVParts, slots: memoryview, target: KVParts) -> None:
        """Raises WrongLayout if blocks of the two cannot be exchanged."""
        self._copier = BlockCopier(memory, target)
        self._slots = SlotReader(slots)

    def source(self, slot: Slot) -> PublishedBlocks:
        return PublishedBlocks(self._copier, self._slots, slot)

    def close(self) -> None:
        """Nothing is to be closed."""
