"""The role of one replica, which may change while it runs.

    user_config.switched ──┐
    autoscaling's record ──┴─► how many ─┐
    rank of the replica ─────────────────┴─► role ─► Master's reports, routers, load, figures

A role is what others ask a replica for, not what it can do: whatever comes to it on an old word is
done like the rest. So nothing is refused, and what is under way goes on. Streams leave a replica
that has become a prefill replica as they leave one that is to stop.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from rtp_serve.errors import ConfigError
from rtp_serve.observability.metrics import PREFIX
from rtp_serve.routing.roles import role_of_rank
from rtp_serve.routing.types import Role

_PERIOD_S = 1.0

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class RoleOptions:
    """What a replica is told of its role; it goes to the replica with its constructor."""

    home: Role
    """Its deployment's."""

    can_switch: bool = False

    is_autoscaled: bool = False
    """Whether autoscaling says how many have the other role, instead of `user_config`."""


class ReplicaRole:
    """For one event loop."""

    def __init__(
        self,
        options: RoleOptions,
        replica: str,
        read_num_switched: Callable[[], int | None],
        on_change: Callable[[], None],
    ) -> None:
        """`read_num_switched` may block, and says None if nobody has decided lately."""
        self.options = options
        self._replica = replica
        self._read = read_num_switched
        self._on_change = on_change
        self._current = options.home
        self._rank = self._num_switched = 0
        self._figures = _Figures()
        self._figures.has(options.home)
        self._following: asyncio.Task[None] | None = None

    @property
    def current(self) -> Role:
        return self._current

    @property
    def is_switched(self) -> bool:
        return self._current is not self.options.home

    async def start(self) -> None:
        """Follow autoscaling from now on, where it says who switches."""
        if self.options.can_switch and self.options.is_autoscaled:
            await self._follow_once()
            self._following = asyncio.create_task(self._follow())

    def close(self) -> None:
        if self._following is not None:
            self._following.cancel()

    def configure(self, num_switched: int, rank: int) -> None:
        """From Serve: `user_config` and the replica's rank. Raises ConfigError for a number that
        cannot be set here; the rank is heard of all the same."""
        self._rank = rank
        obstacle = self._obstacle
        if obstacle is None:
            self._num_switched = num_switched
        self._set_role()
        if num_switched and obstacle is not None:
            raise ConfigError(f"user_config: switched: must be 0, got {num_switched}: {obstacle}")

    def render(self) -> str:
        """Figures in the Prometheus text format."""
        return self._figures.render() if self.options.can_switch else ""

    @property
    def _obstacle(self) -> str | None:
        """Why `user_config` cannot have replicas switch."""
        if not self.options.can_switch:
            return "replicas change roles only in applications with `switching: true` in their args"
        return "autoscaling sets it" if self.options.is_autoscaled else None

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_PERIOD_S)
            await self._follow_once()

    async def _follow_once(self) -> None:
        num_switched = await asyncio.to_thread(self._read)
        if num_switched is not None:
            self._num_switched = num_switched
            self._set_role()

    def _set_role(self) -> None:
        role = role_of_rank(self.options.home, self._rank, self._num_switched)
        if role is self._current:
            return
        logger.info(
            "%s is a %s replica from now on: %d of its deployment switch, and its rank is %d",
            self._replica,
            role.value,
            self._num_switched,
            self._rank,
        )
        self._current = role
        self._figures.changed(role)
        self._on_change()


class _Figures:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._role = Gauge(
            PREFIX + "replica_role",
            "1 for the role that the replica has.",
            ("role",),
            registry=self._registry,
        )
        self._switches = Counter(
            PREFIX + "role_switches",
            "Changes of the replica's role, by what it became.",
            ("role",),
            registry=self._registry,
        )

    def has(self, role: Role) -> None:
        self._role.clear()
        self._role.labels(role=role.value).set(1)

    def changed(self, role: Role) -> None:
        self.has(role)
        self._switches.labels(role=role.value).inc()

    def render(self) -> str:
        return generate_latest(self._registry).decode()
