"""Blocks in memory that this process can read: copy, then see whether they were given back."""

from collections.abc import Sequence

from rtp_serve.disaggregation.protocol import Span
from rtp_serve.disaggregation.transport.parts import BlockCopier
from rtp_serve.disaggregation.transport.slots import Slot, SlotReader


class PublishedBlocks:
    """A `BlockSource`."""

    def __init__(self, copier: BlockCopier, slots: SlotReader, slot: Slot) -> None:
        self._copier = copier
        self._slots = slots
        self._slot = slot

    def copy(self, source_ids: Sequence[int], target_ids: Sequence[int], layers: Span) -> bool:
        if not self.is_valid():
            return False
        self._copier.copy(source_ids, target_ids, layers)
        return self.is_valid()

    def is_valid(self) -> bool:
        return self._slots.has(self._slot)
