"""One stream's search for replicas: what it has lost, and how long it may go on."""

import asyncio
from dataclasses import dataclass

from deployments.journal import EngineFailed
from deployments.live_replicas import ReplicaWithdrawn
from deployments.resumption_figures import ResumptionFigures
from rtp_serve.errors import EngineDead, Overloaded, RtpServeError

# A request that has failed so many engines without a token may be why they failed.
_MAX_FAILED_ENGINES = 2
# Between two replicas that refuse: Serve may not have heard yet that one is gone.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.5


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """How much trouble a stream outlives."""

    replica_timeout_s: float
    """Time to find a replica that takes it, at first and after each loss."""

    max_resumptions: int
    """Losses of its replica; with one more it ends with an error. 0: it never changes replicas."""


class ReplicaSearch:
    """A replica that was withdrawn is no loss: its stream had found another one before."""

    def __init__(self, limits: StreamLimits, figures: ResumptionFigures) -> None:
        self._limits = limits
        self._figures = figures
        self._loop = asyncio.get_running_loop()
        self._num_losses = 0
        self._has_begun = False
        self._loss: RtpServeError | None = None
        self._lost_s = 0.0
        self._start()

    def _start(self) -> None:
        self.deadline_s = self._loop.time() + self._limits.replica_timeout_s
        self._pause_s = _FIRST_PAUSE_S

    @property
    def may_move(self) -> bool:
        """Whether its stream may change replicas at all."""
        return self._limits.max_resumptions > 0

    @property
    def is_in_vain(self) -> EngineDead:
        """The end of a search that has lasted till its deadline."""
        return EngineDead(
            f"no replica took the request within {self._limits.replica_timeout_s:g} s"
        )

    def found(self) -> None:
        """A replica has given something."""
        self._has_begun = True
        if self._loss is not None:
            self._figures.resumed(self._loss, self._loop.time() - self._lost_s)
            self._loss = None

    def pause_after(self, error: RtpServeError, *, is_lost: bool) -> float | None:
        """Seconds until the next attempt; None where `error` is the stream's end.

        `is_lost` says that a replica had taken the stream, so that `error` is not a refusal.
        """
        if is_lost:
            return self._pause_after_loss(error)
        if isinstance(error, Overloaded) and not self._num_losses:
            return None  # the client has nothing yet and is to come back
        if self._loop.time() >= self.deadline_s:
            if self._num_losses:
                self._figures.dropped(self._loss or error)
            return None
        pause_s = self._pause_s
        self._pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return min(pause_s, self.deadline_s - self._loop.time())

    def _pause_after_loss(self, error: RtpServeError) -> float | None:
        if not isinstance(error, ReplicaWithdrawn):
            self._num_losses += 1
        is_suspect = isinstance(error, EngineFailed) and not self._has_begun
        if self._num_losses > self._limits.max_resumptions or (
            is_suspect and self._num_losses >= _MAX_FAILED_ENGINES
        ):
            self._figures.dropped(error)
            return None
        if self._loss is None:
            self._lost_s = self._loop.time()
        self._loss = error
        self._start()
        return 0.0
