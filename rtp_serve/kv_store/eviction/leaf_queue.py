"""An order over blocks of which only leaves may go, and its oldest leaf without asking all others.

    oldest                                                         newest
      back (a heap)  <  order ─────────────────────────────────── push
        ▲      │ taken                │ taken, if it may go
        │      ▼                      ▼
        │    has children: parked, until the last child goes ─┐
        └──── may not go for another reason ◄─────────────────┘

A block leaves `order` at its old end only, so all that is parked or back is older than all in
`order`. A block that has children is passed once, not by every search; one that may not go for a
reason that only the caller knows is asked about by each search that comes to it.
"""

from collections import OrderedDict
from collections.abc import Callable
from heapq import heapify, heappop, heappush

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.eviction.families import Families

_MIN_REBUILD = 16


class LeafQueue:
    """Keys by the time of their last `push`. All but `take` is O(1), amortised; `take` is, but
    for O(log n) for each key that it finds back, or leaves for another reason than children."""

    def __init__(self, families: Families) -> None:
        """`families` is the policy's; who takes a last child out of it tells `children_gone`."""
        self._families = families
        self._order: OrderedDict[BlockHash, int] = OrderedDict()
        self._parked: dict[BlockHash, int] = {}
        self._back: dict[BlockHash, int] = {}
        self._heap: list[tuple[int, BlockHash]] = []  # has all of _back, and some that left it
        self._next_stamp = 0

    def __len__(self) -> int:
        return len(self._order) + len(self._parked) + len(self._back)

    def __contains__(self, key: BlockHash) -> bool:
        return key in self._order or key in self._parked or key in self._back

    def push(self, key: BlockHash) -> None:
        """A new key, or one that is here, becomes the newest."""
        self.discard(key)
        self._order[key] = self._next_stamp
        self._next_stamp += 1

    def discard(self, key: BlockHash) -> bool:
        """Whether it was here."""
        for keys in (self._order, self._parked, self._back):
            if keys.pop(key, None) is not None:
                return True
        return False

    def children_gone(self, key: BlockHash) -> None:
        """It may go now, if it is here: it gets back to its place."""
        stamp = self._parked.pop(key, None)
        if stamp is not None:
            self._put_back(key, stamp)

    def take(
        self,
        is_evictable: Callable[[BlockHash], bool],
        is_spared: Callable[[BlockHash], bool] = lambda _: False,
    ) -> BlockHash | None:
        """Take out the oldest leaf that may go; None if there is none.

        `is_spared` is asked first, of each key that is neither parked nor newer than the answer. If
        it says yes, the key has left the queue, and the callee may `push` it, here or elsewhere.
        """
        held: list[tuple[int, BlockHash]] = []
        taken = None
        while taken is None and (oldest := self._pop_oldest()) is not None:
            stamp, key = oldest
            if is_spared(key):
                continue
            if self._families.has_children(key):
                self._parked[key] = stamp
            elif is_evictable(key):
                taken = key
            else:
                held.append(oldest)
        for stamp, key in held:
            self._put_back(key, stamp)
        return taken

    def _pop_oldest(self) -> tuple[int, BlockHash] | None:
        while self._heap:
            stamp, key = heappop(self._heap)
            if self._back.get(key) == stamp:
                del self._back[key]
                return stamp, key
        if self._order:
            key, stamp = self._order.popitem(last=False)
            return stamp, key
        return None

    def _put_back(self, key: BlockHash, stamp: int) -> None:
        self._back[key] = stamp
        heappush(self._heap, (stamp, key))
        if len(self._heap) > 2 * len(self._back) + _MIN_REBUILD:
            self._heap = [(each, key) for key, each in self._back.items()]
            heapify(self._heap)

    def check_invariants(self) -> None:
        stamps = list(self._order.values())
        assert stamps == sorted(stamps), f"order is {stamps}"
        aside = [*self._parked.values(), *self._back.values()]
        first = stamps[0] if stamps else self._next_stamp
        assert all(stamp < first for stamp in aside), f"{aside} are not older than {first}"
        assert len({*self._order, *self._parked, *self._back}) == len(self), "a key is here twice"
        for key in self._parked:
            assert self._families.has_children(key), f"{key.hex()} is parked without children"
        heap = set(self._heap)
        for key, stamp in self._back.items():
            assert (stamp, key) in heap, f"{key.hex()} is back, and not to be found"
