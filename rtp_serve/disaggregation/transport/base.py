"""What any way of bringing blocks from another replica offers."""

from collections.abc import Sequence
from typing import Protocol

from rtp_serve.disaggregation.protocol import Span
from rtp_serve.disaggregation.transport.slots import Slot


class BlockSource(Protocol):
    """The blocks of one publication, as the decode side copies them. For any thread."""

    def copy(self, source_ids: Sequence[int], target_ids: Sequence[int], layers: Span) -> bool:
        """Copy `layers` of blocks there into blocks here, in pairs; False if blocks were given back
        meanwhile, so that the bytes here are no use. Returns when nothing more will be written.

        Raises WrongLayout if there are no such blocks.
        """
        ...

    def is_valid(self) -> bool:
        """Whether the blocks have not been given back; if not, they never will be valid again."""
        ...


class Peer(Protocol):
    """A prefill replica's memory."""

    def source(self, slot: Slot) -> BlockSource:
        """Of the publication that was told this slot."""
        ...

    def close(self) -> None:
        """Its memory goes when the last source is forgotten."""
        ...
