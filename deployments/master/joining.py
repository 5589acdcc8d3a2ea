"""How replicas and ingresses of an application come to its Master."""

import asyncio
from dataclasses import dataclass
from random import Random

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments import live_replicas
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


@dataclass(frozen=True, slots=True)
class RoutingOptions:
    """What a replica is told of the Master; it goes to the replica with its constructor."""

    config: RoutingConfig
    role: Role


def routing_options(config: RoutingConfig | None, role: Role) -> RoutingOptions | None:
    """None for an application without a Master."""
    return None if config is None else RoutingOptions(config, role)


async def start_link(options: RoutingOptions, engine: AsyncEngine, replica: str) -> MasterLink:
    """Tell the Master of this replica from now on. Raises what `AsyncEngine.reporter` raises."""
    clock = WallClock()
    worker_id = WorkerId(replica)
    node_id = ray.get_runtime_context().get_node_id()
    epoch = int(clock.wall() * 1000)
    identity = WorkerIdentity(worker_id, epoch, options.role, node_id)
    reporter = await asyncio.to_thread(engine.reporter, identity)  # it may measure first
    application = serve.get_replica_context().app_name
    link = MasterLink(worker_id, reporter, _connection(application, options.config), clock)
    link.start()
    return link


def start_client(
    config: RoutingConfig, handle: DeploymentHandle, model: ReplicaModel
) -> MasterClient:
    """Have the Master choose among the replicas behind `handle` from now on."""
    clock = WallClock()
    client = MasterClient(
        _connection(handle.app_name, config),
        StandIn(config, Random(), clock),
        model,
        live_replicas.of(handle.app_name, handle.deployment_name),
        clock,
    )
    client.start()
    return client


def _connection(application: str, config: RoutingConfig) -> MasterConnection:
    plan = MasterPlan(application, config)
    return MasterConnection(lambda: find_or_start(plan))
