"""MasterActor: an application's Master, and how it is found.

    replica ──── report, every 50 ms at most ────► MasterActor
    ingress ──── schedule, once an attempt ──────►     │
            ◄─── its snapshot, every few seconds ──────┘

Its name says application and configuration, so whoever asks first makes it and the others find it.
Ray starts it again when it dies; what it knew comes again with the replicas' next reports. It ends
by itself some time after the last call.
"""

import json
import logging
import secrets
import threading
from dataclasses import dataclass
from hashlib import blake2b
from random import Random

import ray
from ray.actor import ActorHandle

from deployments.actors import IDLE_EXIT_S, LOOKS, NAMESPACE, end_this_actor
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

    @property
    def actor_name(self) -> str:
        settings = json.dumps(self.config.model_dump(mode="json"), sort_keys=True)
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
    return actor.remote(plan.config, idle_exit_s)


class MasterActor:
    """A MasterService behind Ray: its methods are those of the service, one call after the other.

    Plain methods, as Ray answers them no later than those of an event loop, and a call is over in
    less than a millisecond.
    """

    def __init__(self, config: RoutingConfig, idle_exit_s: float) -> None:
        configure_logging()
        self._clock = WallClock()
        self._service = MasterService(config, self._clock, Random(), secrets.token_hex(8))
        self._idle_exit_s = idle_exit_s
        self._used_s = self._expired_s = self._clock.monotonic()
        watch = threading.Thread(target=self._watch, name="master-watch", daemon=True)
        watch.start()

    def report(self, data: bytes) -> bytes:
        """From replicas."""
        self._use()
        return self._service.report(data)

    def schedule(self, data: bytes) -> bytes:
        """From ingresses, as is all that follows but what replicas say as they leave."""
        self._use()
        return self._service.schedule(data)

    def ended(self, data: bytes) -> None:
        self._use()
        self._service.ended(data)

    def snapshot(self, data: bytes) -> bytes:
        self._use()
        return self._service.snapshot(data)

    def figures(self) -> bytes:
        self._use()
        return self._service.figures()

    def _use(self) -> None:
        """Whoever calls brings the time along: there is a heartbeat a second of each replica."""
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
