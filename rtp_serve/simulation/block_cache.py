"""An engine's prefix cache as sets of hashes: least recently used first, leaves before parents."""

from collections import OrderedDict
from collections.abc import Sequence

from rtp_serve.kv_cache.block import BlockHash


class BlockCache:
    """Remembers what changed, as an engine does that reports deltas."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._blocks: OrderedDict[BlockHash, None] = OrderedDict()  # the next to go comes first
        self._changes: dict[BlockHash, bool] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, key: BlockHash) -> bool:
        return key in self._blocks

    def use(self, chain: Sequence[BlockHash]) -> int:
        """Blocks of `chain` that are there, from its beginning; they go last now."""
        found = 0
        while found < len(chain) and chain[found] in self._blocks:
            found += 1
        for key in reversed(chain[:found]):
            self._blocks.move_to_end(key)
        return found

    def store(self, chain: Sequence[BlockHash]) -> None:
        """All of `chain` is computed."""
        for key in reversed(chain):
            if key in self._blocks:
                self._blocks.move_to_end(key)
            else:
                self._blocks[key] = None
                self._change(key, True)
        self.shrink(self.capacity)

    def shrink(self, capacity: int) -> None:
        """Give up blocks until so many are left."""
        while len(self._blocks) > capacity:
            key, _ = self._blocks.popitem(last=False)
            self._change(key, False)

    def changes(self) -> tuple[tuple[BlockHash, ...], tuple[BlockHash, ...]]:
        """Added and removed since the last call."""
        added = tuple(key for key, is_added in self._changes.items() if is_added)
        removed = tuple(key for key, is_added in self._changes.items() if not is_added)
        self._changes = {}
        return added, removed

    def _change(self, key: BlockHash, is_added: bool) -> None:
        # Added and removed again, or the other way round: nothing has happened.
        if self._changes.get(key, is_added) != is_added:
            del self._changes[key]
        else:
            self._changes[key] = is_added
