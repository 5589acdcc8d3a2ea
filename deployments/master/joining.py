"""How replicas and ingresses of an application come to its Master."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import ray
from ray import serve

from deployments.live_replicas import Replicas
from deployments.master.actor import MasterPlan, find_or_start
from deployments.master.client import MasterClient
from deployments.master.connection import MasterConnection
from deployments.master.link import MasterLink
from deployments.master.stand_in import StandIn
from deployments.master.store_follower import StoreFollower
from deployments.replica_model import ReplicaModel
from rtp_serve.clock import WallClock
from rtp_serve.config.routing import RoutingConfig
from rtp_serve.config.serving import AppConfig
from rtp_serve.engine.async_engine import AsyncEngine
from rtp_serve.routing.report import WorkerIdentity
from rtp_serve.routing.types import Role, WorkerId


@dataclass(frozen=True, slots=True)
class RoutingOptions:
    """What the processes of an application must know to find its Master."""

    config: RoutingConfig
    tcp_ports: range

    def connection(self, application: str) -> MasterConnection:
        """To the Master of `application`."""
        plan = MasterPlan(application, self.config, self.tcp_ports)
        node_id = ray.get_runtime_context().get_node_id()
        return MasterConnection(lambda: find_or_start(plan), node_id)


def routing_options(config: AppConfig) -> RoutingOptions | None:
    """None for an application without a Master."""
    routing = config.master
    return None if routing is None else RoutingOptions(routing, config.channel.tcp_port_range)


async def start_link(
    options: RoutingOptions, engine: AsyncEngine, replica: str, role: Callable[[], Role]
) -> MasterLink:
    """Tell the Master of this replica, and of the `role` that it has at the time, from now on.
    Raises what `AsyncEngine.reporter` raises."""
    clock = WallClock()
    worker_id = WorkerId(replica)
    node_id = ray.get_runtime_context().get_node_id()
    epoch = int(clock.wall() * 1000)
    identity = WorkerIdentity(worker_id, epoch, role(), node_id, engine.store_name)
    reporter = await asyncio.to_thread(engine.reporter, identity)  # it may measure first
    application = serve.get_replica_context().app_name
    connection = options.connection(application)
    store = StoreFollower(engine.store_name, engine.store_news) if engine.store_name else None
    link = MasterLink(worker_id, reporter, connection, clock, role, engine.prefetch, store)
    link.start()
    return link


def start_client(
    options: RoutingOptions, application: str, model: ReplicaModel, live: Replicas
) -> MasterClient:
    """Have the application's Master choose among its replicas from now on; `live` are those that
    run streams."""
    clock = WallClock()
    client = MasterClient(
        options.connection(application),
        StandIn(options.config, Random(), clock),
        model,
        live,
        clock,
    )
    client.start()
    return client
