"""A member's connection to its node's KV-store actor, made and made again beside the engine.

joining ── answer ──► up ── a call fails ──► pause, longer each time ──► joining
                      └── joins again now and then, so that the actor knows who is there
"""

import logging
import threading
from collections.abc import Callable
from contextlib import suppress

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from rtp_serve.clock import Clock

_JOIN_TIMEOUT_S = 15.0
"""A process must start and read the headers of an arena."""

_JOIN_AGAIN_S = 15.0
_LEAVE_TIMEOUT_S = 1.0
_MIN_PAUSE_S = 0.1
_MAX_PAUSE_S = 10.0

logger = logging.getLogger(__name__)


class StoreConnection:
    """Has the actor while it answers. Who calls it never waits for it to come."""

    def __init__(self, find_or_start: Callable[[], ActorHandle], owner: str, clock: Clock) -> None:
        """Starts a thread. `owner` is the member's process, see `member_name`."""
        self._find_or_start = find_or_start
        self._owner = owner
        self._clock = clock
        self._actor: ActorHandle | None = None
        self._was_up: bool | None = None  # None: not known yet
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="kv-store-connection", daemon=True)
        self._thread.start()

    @property
    def actor(self) -> ActorHandle | None:
        """None while nobody answers."""
        return self._actor

    def wait(self, timeout_s: float) -> bool:
        """Until the actor answers; False if it does not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._actor is not None, timeout_s)

    def lost(self, actor: ActorHandle, error: Exception) -> None:
        """A call to the actor failed: it is not to be had before it has answered again."""
        with self._changed:
            if self._actor is actor:
                self._down(error)

    def close(self) -> None:
        """Leave. A store that does not answer sees our process end."""
        with self._changed:
            self._is_closed = True
            self._actor = None
            self._changed.notify_all()
        self._thread.join(_LEAVE_TIMEOUT_S)

    def _run(self) -> None:
        pause_s = _MIN_PAUSE_S
        while not self._is_closed:
            began_s = self._clock.monotonic()
            actor = self._connect()
            if actor is not None:
                self._stay(actor)
            if self._clock.monotonic() - began_s > _MAX_PAUSE_S:
                pause_s = _MIN_PAUSE_S
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed, pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    def _connect(self) -> ActorHandle | None:
        """The node's actor, which knows us now; None if it does not answer."""
        try:
            actor = self._find_or_start()
            self._join(actor)
        except (RayError, ValueError) as error:
            with self._changed:
                self._down(error)
            return None
        with self._changed:
            self._up(actor)
        return actor

    def _stay(self, actor: ActorHandle) -> None:
        """Until the actor is lost or we leave."""
        while not self._is_over_within(_JOIN_AGAIN_S):
            try:
                self._join(actor)
            except RayError as error:
                self.lost(actor, error)
        if self._is_closed:
            with suppress(RayError):
                actor.leave.remote(self._owner)

    def _join(self, actor: ActorHandle) -> None:
        ray.get(actor.join.remote(self._owner), timeout=_JOIN_TIMEOUT_S)

    def _is_over_within(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._actor is None, seconds)

    # A change of state is one line in the log, however often it is found again.

    def _up(self, actor: ActorHandle) -> None:
        if self._is_closed:
            return
        if self._was_up is False:
            logger.warning("this node's KV store answers again")
        self._actor, self._was_up = actor, True
        self._changed.notify_all()

    def _down(self, error: Exception) -> None:
        if self._was_up is not False and not self._is_closed:
            reason = _reason(error)
            logger.warning("this node's KV store does not answer, so nothing is found: %s", reason)
        self._actor, self._was_up = None, False
        self._changed.notify_all()


def _reason(error: Exception) -> str:
    """One line."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    first_line, _, _ = str(cause).partition("\n")
    return f"{type(cause).__name__}: {first_line}"
