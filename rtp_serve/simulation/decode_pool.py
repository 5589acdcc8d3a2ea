"""Sequences that decode together, as a fluid: all of them move at one rate, in tokens a second.

A sequence ends when the pool has moved as many tokens as it wants since it came. So a change of the
rate concerns all of them and costs nothing a sequence.
"""

import heapq
from collections.abc import Iterator


class DecodePool:
    """Of one engine. Time goes on with `advance`, which everything else must be preceded by."""

    def __init__(self) -> None:
        self.num_kv_tokens = 0.0
        """Of the contexts of all sequences; they grow with each token."""
        self._position = 0.0
        self._rate = 0.0
        self._time_s = 0.0
        self._heap: list[tuple[float, int, str, float]] = []  # end, order, sequence, context at 0
        self._num_added = 0

    def __len__(self) -> int:
        return len(self._heap)

    def advance(self, now: float) -> None:
        moved = self._rate * (now - self._time_s)
        self._position += moved
        self.num_kv_tokens += moved * len(self._heap)
        self._time_s = now

    def set_rate(self, tokens_per_s: float) -> None:
        """Of each sequence, from now on."""
        self._rate = tokens_per_s

    def add(self, sequence: str, num_tokens: int, num_context_tokens: int) -> None:
        """It wants `num_tokens` more, and has a context already."""
        end = self._position + num_tokens
        at_zero = num_context_tokens - self._position
        heapq.heappush(self._heap, (end, self._num_added, sequence, at_zero))
        self._num_added += 1
        self.num_kv_tokens += num_context_tokens

    def pop_ended(self) -> Iterator[str]:
        """Sequences that have all they want."""
        while self._heap and self._heap[0][0] <= self._position + 1e-6:
            end, _, sequence, at_zero = heapq.heappop(self._heap)
            self.num_kv_tokens -= at_zero + end
            yield sequence

    def next_end_s(self) -> float | None:
        """When the next one will have it at this rate; None if that is never."""
        if not self._heap or not self._rate:
            return None
        return self._time_s + max(0.0, self._heap[0][0] - self._position) / self._rate
