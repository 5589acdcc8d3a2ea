"""What happens next, on a clock that jumps from event to event."""

import heapq
from collections.abc import Callable

from rtp_serve.clock import VirtualClock


class Events:
    """Calls in the order of their times; of equal times, in the order they were planned in."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._num_planned = 0

    @property
    def now(self) -> float:
        return self._clock.monotonic()

    def at(self, time_s: float, call: Callable[[], None]) -> None:
        """Plan a call; a time that is past counts as now."""
        heapq.heappush(self._heap, (max(time_s, self.now), self._num_planned, call))
        self._num_planned += 1

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        self.at(self.now + delay_s, call)

    def run(self) -> None:
        """Until nothing is planned."""
        while self._heap:
            time_s, _, call = heapq.heappop(self._heap)
            self._clock.advance(max(0.0, time_s - self.now))
            call()
