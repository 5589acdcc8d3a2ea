"""Replicas that have one role now, whichever deployment started them.

DecodeReplica    ─── all but those that switched ──┐
                                                   ├──► RolePool(DECODE) ─── streams
PrefillReplica   ─── those that switched ──────────┘
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ray.serve.handle import DeploymentHandle

from deployments import live_replicas
from deployments.live_replicas import LiveReplicas
from rtp_serve.routing.types import Role


@dataclass(frozen=True, slots=True)
class Deployment:
    """Where replicas of a pool can be."""

    handle: DeploymentHandle
    live: LiveReplicas


class RolePool:
    """A `Replicas`. Knows what this process's routers have told."""

    def __init__(
        self,
        role: Role,
        home: DeploymentHandle,
        others: Sequence[DeploymentHandle] = (),
        *,
        without: str = "",
    ) -> None:
        """`home` leads to the deployment whose role it is, `others` to those whose replicas can
        take it. `without` is the name of a replica that does not count."""
        self._role = role
        self._home = _deployment(home)
        self._others = tuple(map(_deployment, others))
        self._without = frozenset({without})
        for each in self._others:
            each.handle.options()  # makes its router, which tells from then on

    @property
    def names(self) -> frozenset[str] | None:
        """See `Replicas`."""
        if self._home.live.names is None:
            return None
        return frozenset().union(*map(self._members, self._deployments))

    @property
    def all_names(self) -> frozenset[str] | None:
        """See `Replicas`."""
        if self._home.live.names is None:
            return None
        return frozenset().union(*(each.live.names or () for each in self._deployments))

    def lacks(self, name: str) -> bool:
        """See `Replicas`."""
        names = self.names or frozenset()
        return bool(names) and name not in names

    def watch(self, watcher: Callable[[], None]) -> None:
        """See `Replicas`."""
        for each in self._deployments:
            each.live.watch(watcher)

    def unwatch(self, watcher: Callable[[], None]) -> None:
        """See `Replicas`."""
        for each in self._deployments:
            each.live.unwatch(watcher)

    def handle(self, replica: str = "") -> DeploymentHandle:
        """Leads to the replica of this name; without one, to any, each as likely as the others."""
        if not self._others:
            return self._home.handle
        if replica:
            found = (each for each in self._others if replica in (each.live.names or ()))
            return next(found, self._home).handle
        weights = [len(self._members(each)) for each in self._deployments]
        if not any(weights):
            return self._home.handle
        (chosen,) = random.choices(self._deployments, weights)
        return chosen.handle

    @property
    def _deployments(self) -> tuple[Deployment, ...]:
        return (self._home, *self._others)

    def _members(self, deployment: Deployment) -> frozenset[str]:
        """Those that have the role, or are at home and have not said what theirs is."""
        live, is_home = deployment.live, deployment is self._home
        roles = (self._role, None) if is_home else (self._role,)
        names = live.names or frozenset()
        return frozenset(each for each in names if live.role(each) in roles) - self._without


def _deployment(handle: DeploymentHandle) -> Deployment:
    return Deployment(handle, live_replicas.of(handle.app_name, handle.deployment_name))
