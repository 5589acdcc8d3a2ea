"""What the index asks of an eviction policy: an order over blocks, and nothing else.

The index decides what may go (leaves that nobody holds, of tenants over their quota); the policy
decides which of those goes first.
"""

from collections.abc import Callable
from typing import Protocol

from rtp_serve.kv_cache.block import BlockHash


class EvictionPolicy(Protocol):
    """Over the keys of all blocks that are READY."""

    def insert(self, key: BlockHash, parent: BlockHash | None) -> None:
        """A block became READY. Of blocks that came together, a child comes before its parent, so
        that the parent looks newer. The parent may be unknown."""
        ...

    def hit(self, key: BlockHash) -> None:
        """A block was used; of blocks that were used together, a child comes before its parent."""
        ...

    def remove(self, key: BlockHash) -> None:
        """A block is gone for another reason than the policy's choice; it is forgotten."""
        ...

    def victim(self, is_evictable: Callable[[BlockHash], bool]) -> BlockHash | None:
        """Choose an evictable block; None if there is none. It leaves the policy with this call,
        which may remember that it was there."""
        ...
