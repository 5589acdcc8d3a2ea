"""Which replicas of a deployment Serve sends this process's requests to.

Serve's router tells, in its own thread (`deployments/watched_router.py`); streams watch. A replica
that is missing has died, failed its health checks or is told to stop, and gets nothing new.
"""

import threading
from collections.abc import Callable

from rtp_serve.errors import EngineDead


class ReplicaWithdrawn(EngineDead):
    """Serve gives the replica nothing new; the stream goes on at another one."""


class LiveReplicas:
    """Names of one deployment's replicas; nothing is known before a router has told."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._names: frozenset[str] | None = None
        self._watchers: set[Callable[[], None]] = set()

    @property
    def names(self) -> frozenset[str] | None:
        """None as long as no router has told."""
        return self._names

    def lacks(self, name: str) -> bool:
        """Whether this one was withdrawn and others were not."""
        names = self._names or frozenset()
        return bool(names) and name not in names

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call it after each change, in the thread of whoever tells."""
        with self._changing:
            self._watchers.add(watcher)

    def unwatch(self, watcher: Callable[[], None]) -> None:
        """Idempotent."""
        with self._changing:
            self._watchers.discard(watcher)

    def tell(self, names: frozenset[str]) -> None:
        """From a router: these and no others."""
        with self._changing:
            if names == self._names:
                return
            self._names = names
            for watcher in self._watchers:
                watcher()


_lock = threading.Lock()
_deployments: dict[tuple[str, str], LiveReplicas] = {}


def of(app: str, deployment: str) -> LiveReplicas:
    """This process's one of a deployment."""
    with _lock:
        return _deployments.setdefault((app, deployment), LiveReplicas())
