"""MasterActor: an application's Master, and how it is found.

    replica ──── report, every 50 ms at most ────► MasterActor
    ingress ──── schedule, once an attempt ──────►     │
            ◄─── its snapshot, every few seconds ──────┘

Ray's call says where it listens (`address`); everything else goes over a socket, see `connection`.

Its name says application and configuration, so whoever asks first makes it and the others find it.
Ray starts it again when it dies; what it knew comes again with the replicas' next reports. It ends
by itself some time after the last call.
"""

import asyncio
import json
import logging
import secrets
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import Any

import ray
from ray.actor import ActorHandle

from deployments.actors import IDLE_EXIT_S, LOOKS, NAMESPACE, end_this_actor
from deployments.channels.door import Door
from deployments.master.channel_wire import VERSION, encode_frame
from deployments.master.listener import MasterListener
from deployments.master.service import MasterService
from rtp_serve.clock import WallClock
from rtp_serve.config.routing import RoutingConfig
from rtp_serve.observability.logging import configure_logging

_EXPIRE_PERIOD_S = 1.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MasterPlan:
    """What a Master is made of. Processes that agree on it share it."""

    application: str
    config: RoutingConfig
    tcp_ports: range = range(0)
    """For those of other nodes; any port if it is empty."""

    @property
    def actor_name(self) -> str:
        ports = self.tcp_ports.start, self.tcp_ports.stop
        config = self.config.model_dump(mode="json")
        settings = json.dumps((VERSION, ports, config), sort_keys=True)
        digest = blake2b(settings.encode(), digest_size=8).hexdigest()
        return f"rtp_serve.master.{self.application}.{digest}"


def find_or_start(plan: MasterPlan, idle_exit_s: float = IDLE_EXIT_S) -> ActorHandle:
    """The plan's actor, which may still be starting. It ends `idle_exit_s` after the last call.

    Raises a RayError if Ray cannot say, ValueError if the name went meanwhile.
    """
    actor = ray.remote(MasterActor).options(
        name=plan.actor_name,
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        max_restarts=-1,
        num_cpus=0,
    )
    return actor.remote(plan.config, plan.tcp_ports, idle_exit_s)


class MasterActor:
    """A MasterService behind a door, which Ray's call tells the way to.

    Everything but `address` happens on the event loop of a thread of its own.
    """

    def __init__(self, config: RoutingConfig, tcp_ports: range, idle_exit_s: float) -> None:
        configure_logging()
        self._clock = WallClock()
        self._service = MasterService(config, self._clock, Random(), secrets.token_hex(8))
        self._idle_exit_s = idle_exit_s
        self._used_s = self._expired_s = self._clock.monotonic()
        self._node_id = ray.get_runtime_context().get_node_id()
        host = ray.util.get_node_ip_address()
        self._door = Door("rtp-serve-master", self._node_id, host, tcp_ports)
        self._loop = asyncio.new_event_loop()
        for name, run in (("master", self._loop.run_forever), ("master-watch", self._watch)):
            threading.Thread(target=run, name=name, daemon=True).start()
        self._run(MasterListener(self._door, self._service, self._use).start())

    def address(self, node_id: str) -> bytes:
        """Where a process of that node finds the service: a ChannelAddress. Raises OSError when
        no port is free."""
        if node_id != self._node_id:
            self._run(self._door.open_tcp())
        return encode_frame(self._door.address)

    def _run(self, doing: Coroutine[Any, Any, None]) -> None:
        """On the loop, until it is done."""
        asyncio.run_coroutine_threadsafe(doing, self._loop).result()

    def _use(self) -> None:
        """Whoever asks brings the time along: there is a heartbeat a second of each replica."""
        now = self._used_s = self._clock.monotonic()
        if now - self._expired_s >= _EXPIRE_PERIOD_S:
            self._expired_s = now
            self._service.expire()

    def _watch(self) -> None:
        """End this process when nobody uses it."""
        wait = threading.Event().wait
        while self._clock.monotonic() - self._used_s < self._idle_exit_s:
            wait(self._idle_exit_s / LOOKS)
        logger.info("the Master ends: nobody used it for %g s", self._idle_exit_s)
        end_this_actor()
