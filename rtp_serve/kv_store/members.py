"""Who uses a store that lives in a process of its own, which is to end after the last of them."""

import threading
from collections.abc import Callable

from rtp_serve.clock import Clock
from rtp_serve.kv_store.member import is_dead


class Members:
    """Processes that have come and neither left nor died. Thread-safe."""

    def __init__(self, clock: Clock, is_gone: Callable[[str], bool] = is_dead) -> None:
        self._clock = clock
        self._is_gone = is_gone
        self._owners: set[str] = set()
        self._last_seen_s = clock.monotonic()
        self._is_closed = False
        self._lock = threading.Lock()

    def come(self, owner: str) -> bool:
        """A process uses the store; False if it is too late for that."""
        with self._lock:
            if not self._is_closed:
                self._owners.add(owner)
            return not self._is_closed

    def leave(self, owner: str) -> None:
        """A process lives on without the store."""
        with self._lock:
            self._last_seen_s = self._clock.monotonic()
            self._owners.discard(owner)

    def close_if_idle(self, idle_s: float) -> bool:
        """Whether nobody was here for so long. If so, nobody can come any more."""
        with self._lock:
            now_s = self._clock.monotonic()
            self._owners = {owner for owner in self._owners if not self._is_gone(owner)}
            if self._owners:
                self._last_seen_s = now_s
            elif now_s - self._last_seen_s >= idle_s:
                self._is_closed = True
            return self._is_closed
