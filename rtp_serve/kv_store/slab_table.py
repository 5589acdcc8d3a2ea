"""Which slabs can be given away: the free ones, and those that are kept back for a while.

A writer whose reservation has ended may still be writing: stopped by the system in the middle of a
copy, it goes on minutes later. Such a slab is QUARANTINED, until one of these frees it:

    settled         the writer says that it has stopped, by `complete` or `abandon`, however late
    owner died      a process that is gone writes nothing
    time            nobody stands still for so long; and if somebody does, and then writes into a
                    slab that is another's, checksums turn what that spoils into misses
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quarantine:
    """A slab that is kept back."""

    slab: int
    owner: str | None
    """Who may be writing, if that is known."""

    until_s: float


class SlabTable:
    """Slabs that hold no block."""

    def __init__(self, free: Iterable[int]) -> None:
        self._free = deque(free)
        self._quarantines: dict[int, Quarantine] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_quarantined(self) -> int:
        return len(self._quarantines)

    def take(self) -> int | None:
        """The slab that has been free for the longest time; None if none is free."""
        return self._free.popleft() if self._free else None

    def free(self, slab: int) -> None:
        self._free.append(slab)

    def quarantine(self, generation: int, slab: int, owner: str | None, until_s: float) -> None:
        """`generation` is of the block that had the slab, and names the quarantine."""
        assert generation not in self._quarantines, f"{generation} is in quarantine already"
        self._quarantines[generation] = Quarantine(slab, owner, until_s)

    def settle(self, generation: int) -> bool:
        """Its writer has stopped; False if nobody waits for that."""
        quarantine = self._quarantines.pop(generation, None)
        if quarantine is not None:
            self.free(quarantine.slab)
        return quarantine is not None

    def owner_died(self, owner: str) -> None:
        self._settle_where(lambda each: each.owner == owner)

    def reap(self, now_s: float) -> None:
        """Free those whose time has passed."""
        self._settle_where(lambda each: each.until_s <= now_s)

    def owners(self) -> set[str]:
        """Who may be writing into slabs that are kept back, where that is known."""
        return {each.owner for each in self._quarantines.values() if each.owner is not None}

    def slabs(self) -> list[int]:
        """All of them, for invariants."""
        return [*self._free, *(each.slab for each in self._quarantines.values())]

    def _settle_where(self, is_over: Callable[[Quarantine], bool]) -> None:
        for generation in [key for key, each in self._quarantines.items() if is_over(each)]:
            self.settle(generation)
