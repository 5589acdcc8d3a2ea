"""A prefill replica's epochs: one number for each publication, which readers see.

    slot i   8 bytes at 64 · i: what the publication that has the slot was told, or later ones

A number is never given twice by one slot. Whoever publishes blocks has a slot for as long as they
are held; the slot gets its next number *before* the blocks are given back. A reader copies, and
then looks whether the slot still has the number that it was told: if so, no block was given back
before the copy ended. That asks for loads and stores that are seen in program order, as on x86.
"""

from dataclasses import dataclass

STRIDE_BYTES = 64
"""A cache line: a publication's end takes nothing from the readers of others."""

_STRIDE_WORDS = STRIDE_BYTES // 8


@dataclass(frozen=True, slots=True)
class Slot:
    """A slot that a publication has, and the number that its readers are told."""

    number: int
    value: int


def slots_bytes(num_slots: int) -> int:
    """Of the memory."""
    return num_slots * STRIDE_BYTES


class Slots:
    """The side that publishes. For one thread."""

    def __init__(self, memory: memoryview) -> None:
        """`memory` is zeros, writable, of `slots_bytes`."""
        self._words = memory.cast("B").cast("Q")
        self._free = list(reversed(range(len(self._words) // _STRIDE_WORDS)))
        self._used: dict[int, int] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return len(self._used)

    def allocate(self) -> Slot | None:
        """None if all are in use."""
        if not self._free:
            return None
        number = self._free.pop()
        slot = Slot(number, self._words[number * _STRIDE_WORDS] + 1)
        self._words[number * _STRIDE_WORDS] = slot.value
        self._used[number] = slot.value
        return slot

    def retire(self, slot: Slot) -> None:
        """Bump it: readers discard what they copy from now on. Then the blocks may go."""
        assert self._used.pop(slot.number, None) == slot.value, f"{slot} is not in use"
        self._words[slot.number * _STRIDE_WORDS] = slot.value + 1
        self._free.append(slot.number)


class SlotReader:
    """The side that copies. For any thread."""

    def __init__(self, memory: memoryview) -> None:
        self._words = memory.cast("B").cast("Q")

    def has(self, slot: Slot) -> bool:
        """Whether the publication's blocks were not given back yet."""
        place = slot.number * _STRIDE_WORDS
        return 0 <= place < len(self._words) and bool(self._words[place] == slot.value)
