"""What happens next, on a clock that jumps from event to event."""

import heapq
from collections.abc import Callable


class Events:
    """Calls in the order of their times; of equal times, in the order they were planned in."""

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds. Read only."""
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._num_turns = 0

    def turn(self) -> int:
        """The place among calls of equal times that one planned now would have."""
        self._num_turns += 1
        return self._num_turns

    def at(self, time_s: float, call: Callable[[], None], turn: int | None = None) -> None:
        """Plan a call, at a turn that was taken before or a new one; a time that is past counts as
        now."""
        turn = self.turn() if turn is None else turn
        heapq.heappush(self._heap, (max(time_s, self.now), turn, call))

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        self.at(self.now + delay_s, call)

    def run(self) -> None:
        """Until nothing is planned."""
        heap = self._heap
        while heap:
            self.now, _, call = heapq.heappop(heap)
            call()
