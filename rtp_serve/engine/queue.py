"""Sequences that wait for their first step, or for the next one after a preemption."""

import heapq
from collections import deque
from collections.abc import Iterator
from typing import Protocol

from rtp_serve.engine.sequence import Sequence


class WaitingQueue(Protocol):
    """An order over waiting sequences."""

    def push(self, seq: Sequence) -> None:
        """Add an arrival."""
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
    """First come, first served."""

    def __init__(self) -> None:
        self._seqs: deque[Sequence] = deque()

    def push(self, seq: Sequence) -> None:
        self._seqs.append(seq)

    def push_front(self, seq: Sequence) -> None:
        self._seqs.appendleft(seq)

    def peek(self) -> Sequence:
        return self._seqs[0]

    def pop(self) -> Sequence:
        return self._seqs.popleft()

    def remove(self, seq: Sequence) -> None:
        self._seqs.remove(seq)

    def __len__(self) -> int:
        return len(self._seqs)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._seqs)


class PriorityQueue:
    """Lowest priority number first, then first come. Its order alone puts preempted ones back."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, float, int], Sequence]] = []

    def push(self, seq: Sequence) -> None:
        heapq.heappush(self._heap, (seq.order, seq))

    def push_front(self, seq: Sequence) -> None:
        self.push(seq)

    def peek(self) -> Sequence:
        return self._heap[0][1]

    def pop(self) -> Sequence:
        return heapq.heappop(self._heap)[1]

    def remove(self, seq: Sequence) -> None:
        self._heap = [entry for entry in self._heap if entry[1] is not seq]
        heapq.heapify(self._heap)

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[Sequence]:
        return (seq for _, seq in sorted(self._heap, key=lambda entry: entry[0]))


def make_waiting_queue(policy: str) -> WaitingQueue:
    """The queue of a SchedulerConfig's policy."""
    return PriorityQueue() if policy == "priority" else FcfsQueue()
