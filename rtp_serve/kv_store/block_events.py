"""The latest changes of what can be found, for those who follow an index from afar.

Versions count changes. Who has followed up to a version asks for what came after; if that is no
longer remembered, or was another index's, a snapshot has it all.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_cache.block_changes import BlockNews


@dataclass(frozen=True, slots=True)
class BlockEvent:
    """A block became findable, or ceased to be."""

    version: int
    key: BlockHash
    is_added: bool


class BlockEvents:
    """A ring of the last events."""

    def __init__(self, capacity: int, version: int) -> None:
        self._events: deque[BlockEvent] = deque(maxlen=capacity)
        self.version = version
        """Of the last event."""

    def append(self, key: BlockHash, is_added: bool) -> None:
        self.version += 1
        self._events.append(BlockEvent(self.version, key, is_added))

    def since(self, version: int) -> tuple[BlockEvent, ...] | None:
        """What came after `version`, in order; None if that is not known any more, or not yet."""
        num_missing = self.version - version
        if not 0 <= num_missing <= len(self._events):
            return None
        return tuple(self._events)[len(self._events) - num_missing :]

    def news(self, since: int | None, keys: Iterable[BlockHash]) -> BlockNews | None:
        """The last word on each block that has changed since a version; all `keys`, which can be
        found now, if that is not known any more or there is none; None if nothing has changed.

        The last word is true whichever of the changes are known already.
        """
        events = self.since(since) if since is not None else None
        if events is None:
            return BlockNews(tuple(keys), is_all=True)
        if not events:
            return None
        is_there = {event.key: event.is_added for event in events}
        added = tuple(key for key, is_added in is_there.items() if is_added)
        removed = tuple(key for key, is_added in is_there.items() if not is_added)
        return BlockNews(added, removed)
