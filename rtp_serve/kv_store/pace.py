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
"""Times the processor time of a piece: the work has an 80th of a core. A step waits for its slowest
core, two threads work beside it, one to the arena and one to the disk, and each takes more of the
step than its own time: caches and memory are shared. Where more is to be stored than that allows,
who waits for it lets it hurry."""


class Pace:
    """For one thread, which makes it."""

    def __init__(self, cpu_s: Callable[[], float] = time.thread_time) -> None:
        """`cpu_s` is the processor time of the thread that calls, in seconds."""
        self._cpu_s = cpu_s
        self._before_s = cpu_s()

    def pause_s(self) -> float:
        """A piece of work has ended; how long to leave the cores alone, for all that the thread has
        done since the last time."""
        before_s, self._before_s = self._before_s, self._cpu_s()
        return (self._before_s - before_s) * _PAUSE
