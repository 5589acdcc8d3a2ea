"""Work beside a decoding engine, in small pieces far apart, so that no step notices it.

A thread that copies a second's worth of blocks at once takes a core from steps that need both. The
same work, spread, costs each step its share of it.

A lower priority is no help. Threads of a step do not sleep between its parts, so what is below them
gets a core when the scheduler cannot keep it waiting any more: a piece then lasts as long as many
steps, each of which it disturbs, and the disk, which waits a dozen times for a segment, is late.
"""

import time
from collections.abc import Callable

_PAUSE = 80.0
"""Times the processor time of a piece: the work has an eightieth of a core. A step waits for its
slowest core, and two threads work beside it, one to the arena and one to the disk."""


class Pace:
    """For one thread."""

    def __init__(self, cpu_s: Callable[[], float] = time.thread_time) -> None:
        """`cpu_s` is the processor time of the thread that calls, in seconds."""
        self._cpu_s = cpu_s
        self._before_s = 0.0

    def begin(self) -> None:
        """A piece of work begins."""
        self._before_s = self._cpu_s()

    def pause_s(self) -> float:
        """It has ended; how long to leave the cores alone."""
        return (self._cpu_s() - self._before_s) * _PAUSE
