"""How replicas and ingresses of an application come to its Master."""

import asyncio
from collections.abc import Callable
from random import Random

import ray
from ray import serve

from deployments.live_replicas import Replicas
from deployments.master.actor import MasterPlan, find_or_start
from deployments.master.client import MasterClient
from deployments.master.connection import MasterConnection
from deployments.master.link import MasterLink
from deployments.master.stand_in import StandIn
from deployments.replica_model import ReplicaModel
from rtp_serve.clock import WallClock
from rtp_serve.config.routing import RoutingConfig
from rtp_serve.engine.async_engine import AsyncEngine
from rtp_serve.routing.report import WorkerIdentity
from rtp_serve.routing.types import Role, WorkerId


async def start_link(
    config: RoutingConfig, engine: AsyncEngine, replica: str, role: Callable[[], Role]
) -> MasterLink:
    """Tell the Master of this replica, and of the `role` that it has at the time, from now on.
    Raises what `AsyncEngine.reporter` raises."""
    clock = WallClock()
    worker_id = WorkerId(replica)
    node_id = ray.get_runtime_context().get_node_id()
    epoch = int(clock.wall() * 1000)
    identity = WorkerIdentity(worker_id, epoch, role(), node_id)
    reporter = await asyncio.to_thread(engine.reporter, identity)  # it may measure first
    application = serve.get_replica_context().app_name
    link = MasterLink(worker_id, reporter, _connection(application, config), clock, role)
    link.start()
    return link


def start_client(
    config: RoutingConfig, application: str, model: ReplicaModel, live: Replicas
) -> MasterClient:
    """Have the application's Master choose among its replicas from now on; `live` are those that
    run streams."""
    clock = WallClock()
    client = MasterClient(
        _connection(application, config),
        StandIn(config, Random(), clock),
        model,
        live,
        clock,
    )
    client.start()
    return client


def _connection(application: str, config: RoutingConfig) -> MasterConnection:
    plan = MasterPlan(application, config)
    return MasterConnection(lambda: find_or_start(plan))
