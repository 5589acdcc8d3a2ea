"""An engine's prefix cache as sets of hashes: least recently used first, leaves before parents."""

from collections import deque
from collections.abc import Sequence

from rtp_serve.kv_cache.block import BlockHash

_KEPT_USES = 3
"""Blocks of the uses that are kept, at most: so many times those that are there, and _SLACK."""

_SLACK = 256


class BlockCache:
    """Remembers what changed, as an engine does that reports deltas.

    A block knows the number of its last use, and a use its chain: what a block was used for before
    is passed over when its turn comes. (Dictionaries and tuples of hashes alone are nothing to
    Python's collector, which else would read those of all replicas again and again.)
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._last_use: dict[BlockHash, int] = {}
        self._uses: deque[tuple[int, tuple[BlockHash, ...]]] = deque()  # the first goes first
        self._num_uses = 0
        self._num_used = 0  # blocks of all in `_uses`
        self._num_gone = 0  # blocks of the first of them, from its end, that were looked at
        self._added: dict[BlockHash, None] = {}
        self._removed: dict[BlockHash, None] = {}

    def __len__(self) -> int:
        return len(self._last_use)

    def __contains__(self, key: BlockHash) -> bool:
        return key in self._last_use

    def use(self, chain: Sequence[BlockHash]) -> int:
        """Blocks of `chain` that are there, from its beginning; they go last now."""
        last_use, number, found = self._last_use, self._num_uses + 1, 0
        for key in chain:
            if key not in last_use:
                break
            last_use[key] = number
            found += 1
        self._note_use(tuple(chain[:found]))
        return found

    def store(self, chain: Sequence[BlockHash]) -> None:
        """All of `chain` is computed."""
        last_use, number = self._last_use, self._num_uses + 1
        for key in chain:
            if key not in last_use:
                if key in self._removed:  # and added again: nothing has happened
                    del self._removed[key]
                else:
                    self._added[key] = None
            last_use[key] = number
        self._note_use(tuple(chain))
        self.shrink(self.capacity)

    def shrink(self, capacity: int) -> None:
        """Give up blocks until so many are left."""
        last_use = self._last_use
        while len(last_use) > capacity:
            number, chain = self._uses[0]
            if self._num_gone == len(chain):
                self._drop_use(0)
                continue
            self._num_gone += 1
            key = chain[-self._num_gone]
            if last_use.get(key) != number:  # used again since, or gone
                continue
            del last_use[key]
            if key in self._added:  # and removed again: nothing has happened
                del self._added[key]
            else:
                self._removed[key] = None

    def changes(self) -> tuple[tuple[BlockHash, ...], tuple[BlockHash, ...]]:
        """Added and removed since the last call."""
        changes = tuple(self._added), tuple(self._removed)
        self._added, self._removed = {}, {}
        return changes

    def _note_use(self, chain: tuple[BlockHash, ...]) -> None:
        """The blocks of `chain` have the next number."""
        self._num_uses += 1
        if self._uses:
            _, before = self._uses[-1]
            if chain[: len(before)] == before:  # a prompt's prefix was used, now it is computed
                self._drop_use(-1)
        self._uses.append((self._num_uses, chain))
        self._num_used += len(chain)
        if self._num_used > _KEPT_USES * len(self._last_use) + _SLACK:
            self._forget_uses()

    def _drop_use(self, place: int) -> None:
        """The first or the last one."""
        _, chain = self._uses[place]
        if place == 0 or len(self._uses) == 1:
            self._num_gone = 0
        del self._uses[place]
        self._num_used -= len(chain)

    def _forget_uses(self) -> None:
        """Keep of each use the blocks whose last one it is."""
        last_use = self._last_use
        kept = (
            (number, tuple([key for key in chain if last_use.get(key) == number]))
            for number, chain in self._uses
        )
        self._uses = deque(each for each in kept if each[1])
        self._num_used, self._num_gone = len(last_use), 0
