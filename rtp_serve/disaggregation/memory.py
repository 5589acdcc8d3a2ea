"""An engine's KV memory as transfers need it."""

from dataclasses import dataclass

import msgspec

from rtp_serve.disaggregation.protocol import MemoryDescriptor, SlotsDescriptor
from rtp_serve.disaggregation.transport.parts import KVParts


@dataclass(frozen=True, slots=True)
class KVMemory:
    """What it is, and how others find it."""

    parts: KVParts
    """In this process."""

    description: MemoryDescriptor
    """Of the same, without slots."""

    def published(self, slots: SlotsDescriptor | None) -> MemoryDescriptor:
        """What others are told."""
        return msgspec.structs.replace(self.description, slots=slots)
