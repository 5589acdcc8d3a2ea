"""Whether the disk takes writes: after an error it is left alone for a while, and asked again."""

import logging
from enum import StrEnum

from rtp_serve.clock import Clock

_MAX_DOUBLINGS = 5

_log = logging.getLogger(__name__)


class TierState(StrEnum):
    READY = "ready"
    DEGRADED = "degraded"
    """Blocks are found and read as far as that works, and none is added."""

    CLOSED = "closed"


class Health:
    """Counts errors; says when to try again. One line in the log a change of state."""

    def __init__(self, clock: Clock, retry_s: float) -> None:
        """The first wait is `retry_s`; each failed attempt doubles it, up to 32 times that."""
        self._clock = clock
        self._retry_s = retry_s
        self._retry_at_s = 0.0
        self._num_failures = 0
        self.num_errors = 0

    @property
    def state(self) -> TierState:
        return TierState.DEGRADED if self._num_failures else TierState.READY

    def may_write(self) -> bool:
        return not self._num_failures or self._clock.monotonic() >= self._retry_at_s

    def failed(self, error: OSError) -> None:
        """A write, or what belongs to one, did not work."""
        self.num_errors += 1
        wait_s = self._retry_s * 2 ** min(self._num_failures, _MAX_DOUBLINGS)
        self._retry_at_s = self._clock.monotonic() + wait_s
        if not self._num_failures:
            _log.warning("KV store on disk: degraded, nothing is added: %s", error)
        self._num_failures += 1

    def succeeded(self) -> None:
        """A write worked."""
        if self._num_failures:
            _log.warning("KV store on disk: works again after %d errors", self._num_failures)
        self._num_failures = 0
