"""Time as an argument. Nothing else in the package asks the operating system what time it is."""

import time
from typing import Protocol


class Clock(Protocol):
    """Where durations and timestamps come from."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never goes back."""
        ...

    def wall(self) -> float:
        """Seconds since the epoch, for timestamps that people read."""
        ...


class WallClock:
    """The machine's own time."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


class VirtualClock:
    """Time that moves only when told to; for tests and simulation."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def monotonic(self) -> float:
        return self._now_s

    def wall(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        assert seconds >= 0, f"time does not go back, got {seconds}"
        self._now_s += seconds
