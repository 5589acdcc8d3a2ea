"""Which replicas of a deployment Serve sends this process's requests to.

Serve's router tells, in its own thread (`deployments/watched_router.py`); streams watch. A replica
that is missing has died, failed its health checks or is told to stop, and gets nothing new.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Protocol

from rtp_serve.errors import EngineDead
from rtp_serve.routing.types import Role


class ReplicaWithdrawn(EngineDead):
    """Serve gives the replica nothing new; the stream goes on at another one."""


class Replicas(Protocol):
    """Those that can be asked for something."""

    @property
    def names(self) -> frozenset[str] | None:
        """None as long as nobody has told."""
        ...

    @property
    def all_names(self) -> frozenset[str] | None:
        """With those that are asked for something else; None as long as nobody has told."""
        ...

    def lacks(self, name: str) -> bool:
        """Whether this one is not among them, and others are."""
        ...

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call it after each change, in the thread of whoever tells."""
        ...

    def unwatch(self, watcher: Callable[[], None]) -> None:
        """Idempotent."""
        ...


class LiveReplicas:
    """Names of one deployment's replicas; nothing is known before a router has told."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._names: frozenset[str] | None = None
        self._roles: Mapping[str, Role] = {}
        self._watchers: set[Callable[[], None]] = set()

    @property
    def names(self) -> frozenset[str] | None:
        """None as long as no router has told."""
        return self._names

    @property
    def all_names(self) -> frozenset[str] | None:
        """The same."""
        return self._names

    def role(self, name: str) -> Role | None:
        """That it said it has; None of one that always has its deployment's."""
        return self._roles.get(name)

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

    def tell(self, names: frozenset[str], roles: Mapping[str, Role] | None = None) -> None:
        """From a router: these and no others, and the roles of those that can change theirs."""
        roles = roles or {}
        with self._changing:
            if names == self._names and roles == self._roles:
                return
            self._names, self._roles = names, roles
            for watcher in self._watchers:
                watcher()


_lock = threading.Lock()
_deployments: dict[tuple[str, str], LiveReplicas] = {}


def of(app: str, deployment: str) -> LiveReplicas:
    """This process's one of a deployment."""
    with _lock:
        return _deployments.setdefault((app, deployment), LiveReplicas())
