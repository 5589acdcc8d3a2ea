"""Whether anybody else uses the machine: wait until nobody does, and say how much was used."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import cpu_jiffies

_QUIET_SHARE = 0.06
_LOOK_S = 0.7

Pids = Callable[[], list[int]]
"""The processes under measurement, as they are at the moment of the call."""


@dataclass(slots=True)
class Contention:
    """Of one measurement."""

    waited_s: float
    others_share: float = 0.0
    """Of the machine's CPU time, what other processes used meanwhile."""


@contextmanager
def quiet(measured: Pids, patience_s: float) -> Iterator[Contention]:
    """Wait at most `patience_s` until all processes together are quiet, the measured ones too, and
    then watch the others while the block runs."""
    contention = Contention(_wait(patience_s))
    before = _Usage.now(measured)
    try:
        yield contention
    finally:
        contention.others_share = _Usage.now(measured).others_since(before)


def _wait(patience_s: float) -> float:
    started_s = time.monotonic()
    while time.monotonic() - started_s < patience_s:
        before = _Usage.now(list)
        time.sleep(_LOOK_S)
        if _Usage.now(list).others_since(before) < _QUIET_SHARE:
            break
    return round(time.monotonic() - started_s, 1)


@dataclass(frozen=True, slots=True)
class _Usage:
    """Jiffies since boot."""

    busy: int
    all: int
    measured: int

    @classmethod
    def now(cls, measured: Pids) -> "_Usage":
        first_line = Path("/proc/stat").read_text().split("\n", 1)[0]
        fields = [int(field) for field in first_line.split()[1:9]]
        idle = fields[3] + fields[4]
        own = cpu_jiffies([os.getpid(), *measured()])
        return cls(sum(fields) - idle, sum(fields), own)

    def others_since(self, before: "_Usage") -> float:
        busy = (self.busy - before.busy) - (self.measured - before.measured)
        return max(0.0, busy / max(1, self.all - before.all))
