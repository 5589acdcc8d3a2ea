"""Sequences that wait for their first step, or for the next one after a preemption."""

import heapq
from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import Protocol

from rtp_serve.engine.sequence import Sequence

_Entry = tuple[bool, tuple[int, float, int], Sequence]


class WaitingQueue(Protocol):
    """An order over waiting sequences. Those for which blocks are held come first: who lacks blocks
    may be waiting for these."""

    def push(self, seq: Sequence, *, holds_blocks: bool = False) -> None:
        """Add one that is new to this engine."""
        ...

    def push_front(self, seq: Sequence) -> None:
        """Give a preempted sequence its place back, before all later arrivals."""
        ...

    def peek(self) -> Sequence:
        """The next one, left in place."""
        ...

    def pop(self) -> Sequence:
        """Take the next one."""
        ...

    def remove(self, seq: Sequence) -> None:
        """Take a given one out."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sequence]: ...


class FcfsQueue:
    """First come, first served; what clients are reading already, before what has not begun."""

    def __init__(self) -> None:
        self._front: deque[Sequence] = deque()
        self._begun: deque[Sequence] = deque()
        self._new: deque[Sequence] = deque()

    def push(self, seq: Sequence, *, holds_blocks: bool = False) -> None:
        if holds_blocks:
            self._front.append(seq)
        elif seq.num_emitted_tokens:  # by another engine
            self._begun.append(seq)
        else:
            self._new.append(seq)

    def push_front(self, seq: Sequence) -> None:
        self._front.appendleft(seq)

    def peek(self) -> Sequence:
        return self._next[0]

    def pop(self) -> Sequence:
        return self._next.popleft()

    def remove(self, seq: Sequence) -> None:
        next(line for line in self._lines if seq in line).remove(seq)

    def __len__(self) -> int:
        return sum(map(len, self._lines))

    def __iter__(self) -> Iterator[Sequence]:
        return chain(*self._lines)

    @property
    def _lines(self) -> tuple[deque[Sequence], ...]:
        return (self._front, self._begun, self._new)

    @property
    def _next(self) -> deque[Sequence]:
        return self._front or self._begun or self._new


class PriorityQueue:
    """Lowest priority number first, then first come. Its order alone puts preempted ones back."""

    def __init__(self) -> None:
        self._heap: list[_Entry] = []

    def push(self, seq: Sequence, *, holds_blocks: bool = False) -> None:
        heapq.heappush(self._heap, (not holds_blocks, seq.order, seq))

    def push_front(self, seq: Sequence) -> None:
        self.push(seq)

    def peek(self) -> Sequence:
        return self._heap[0][-1]

    def pop(self) -> Sequence:
        return heapq.heappop(self._heap)[-1]

    def remove(self, seq: Sequence) -> None:
        self._heap = [entry for entry in self._heap if entry[-1] is not seq]
        heapq.heapify(self._heap)

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[Sequence]:
        return (seq for *_, seq in sorted(self._heap, key=lambda entry: entry[:2]))


def make_waiting_queue(policy: str) -> WaitingQueue:
    """The queue of a SchedulerConfig's policy."""
    return PriorityQueue() if policy == "priority" else FcfsQueue()
