"""How ranks come together: the leader starts followers, and each joins by its plan."""

import secrets
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from rtp_serve.clock import Clock, WallClock
from rtp_serve.config.engine import EngineConfig
from rtp_serve.errors import RankLost
from rtp_serve.native.rank_group import RankGroup
from rtp_serve.native.step_ring import StepReader, StepWriter
from rtp_serve.observability.metrics import MetricsSink
from rtp_serve.parallel.collectives import Collectives
from rtp_serve.parallel.shared_memory import SharedMemory
from rtp_serve.worker.rank_worker import RankWorker
from rtp_serve.worker.ranks.connections import (
    ConnectionReceiver,
    ConnectionSender,
    Switchboard,
    call,
    own_host,
)
from rtp_serve.worker.ranks.follower import Follower
from rtp_serve.worker.ranks.leader import Links, RankedExecutor
from rtp_serve.worker.ranks.links import Receiver, Sender
from rtp_serve.worker.ranks.plan import (
    Meeting,
    RankPlan,
    RankProcess,
    RankStarter,
    Seat,
    Transport,
)
from rtp_serve.worker.ranks.ring_link import RingReceiver, RingSender
from rtp_serve.worker.ranks.shared_kv import SharedKV
from rtp_serve.worker.threads import available_cores, own_cores

_JOIN_S = 300.0
"""Processes on all nodes have started by then."""


def lead(
    config: EngineConfig, starter: RankStarter, clock: Clock, sink: MetricsSink | None = None
) -> RankedExecutor:
    """Start the followers; they load the first version, as `RankedExecutor.start` will here.

    Raises RankError if one of them ends; no process is left then.
    """
    nodes, key = starter.nodes, secrets.token_bytes(32)
    world_size = len(nodes)
    assert world_size == config.parallel.world_size, f"{world_size} places for ranks"
    with ExitStack() as undo:
        switchboard = Switchboard(starter.host, key, world_size - 1)
        undo.callback(switchboard.close)
        meeting = _arrange(starter, len(set(nodes)) == 1)
        processes: list[RankProcess] = []
        for rank in range(1, world_size):
            plan = RankPlan(
                rank,
                world_size,
                _seat(nodes, rank),
                config.model_dump(mode="json"),
                switchboard.address,
                key,
                meeting,
            )
            processes.append(starter.start(plan))
            undo.callback(processes[-1].kill)
        connections = switchboard.connections(lambda: _check(processes))
        switchboard.close()
        reports = [ConnectionReceiver(connection) for connection in connections]
        orders: Sender
        if meeting.transport is Transport.SHARED_MEMORY:
            orders = RingSender(StepWriter(f"{meeting.session}-steps", world_size - 1))
        else:
            orders = ConnectionSender(connections)
        collectives = _join(meeting, 0, world_size, starter.host)
        undo.callback(collectives.close)
        shared_kv = _shared_kv(config, meeting)
        worker = _worker(config, _seat(nodes, 0), collectives, shared_kv, clock, sink)
        links = Links(collectives, orders, reports, processes)
        executor = RankedExecutor(config, worker, links, shared_kv)
        executor.start()
        undo.pop_all()
    return executor


def follow(plan: RankPlan) -> None:
    """Be the rank of the plan until the leader ends. Raises RankError if it is not there."""
    connection = call(plan.leader, plan.key, plan.rank)
    orders: Receiver
    if plan.meeting.transport is Transport.SHARED_MEMORY:
        name = f"{plan.meeting.session}-steps"
        orders = RingReceiver(StepReader(name, plan.rank - 1, plan.world_size - 1))
    else:
        orders = ConnectionReceiver(connection)
    collectives = _join(plan.meeting, plan.rank, plan.world_size, own_host(connection))
    config = EngineConfig.model_validate(plan.config)
    shared_kv = _shared_kv(config, plan.meeting)
    worker = _worker(config, plan.seat, collectives, shared_kv, WallClock())
    Follower(worker, collectives, orders, ConnectionSender([connection])).run()


def _arrange(starter: RankStarter, is_one_node: bool) -> Meeting:
    session = secrets.token_hex(8)
    if is_one_node:
        return Meeting(Transport.SHARED_MEMORY, session)
    return Meeting(Transport.GLOO, session, starter.host, _free_port(starter.host))


def _join(meeting: Meeting, rank: int, world_size: int, own_host: str) -> Collectives:
    """Returns when all ranks have joined, or at once where they share memory."""
    if meeting.transport is Transport.SHARED_MEMORY:
        return SharedMemory(RankGroup(f"{meeting.session}-ranks", rank, world_size))
    # Imported here: it runs torch, which an engine of one rank may do without.
    from rtp_serve.parallel.gloo import gloo, meet

    store = meet(meeting.host, meeting.port, rank, world_size, _JOIN_S)
    return gloo(store, rank, world_size, address=own_host)


def _shared_kv(config: EngineConfig, meeting: Meeting) -> SharedKV | None:
    """Where the ranks are on one node, so that the leader can see every rank's memory."""
    if meeting.transport is not Transport.SHARED_MEMORY:
        return None
    is_shared = config.cache.is_shared
    is_wanted = is_shared or config.kv_store.host.enable
    return SharedKV(meeting.session, keeps_names=is_shared) if is_wanted else None


def _seat(nodes: Sequence[str], rank: int) -> Seat:
    node = nodes[rank]
    return Seat(nodes[:rank].count(node), nodes.count(node))


def _worker(
    config: EngineConfig,
    seat: Seat,
    collectives: Collectives,
    shared_kv: SharedKV | None,
    clock: Clock,
    sink: MetricsSink | None = None,
) -> RankWorker:
    """Ranks of a node share its cores."""
    num_threads = config.num_threads or max(1, available_cores() // seat.num_places)
    own_config = config.model_copy(update={"num_threads": num_threads})
    kv_memory = partial(shared_kv.memory, collectives.rank) if shared_kv is not None else None
    cores = own_cores(seat.place, seat.num_places, num_threads)
    return RankWorker(own_config, collectives, clock, sink, kv_memory, cores)


def _check(processes: Sequence[RankProcess]) -> None:
    for rank, process in enumerate(processes, start=1):
        if not process.is_alive:
            raise RankLost(f"rank {rank} ended before it had joined; its log says why", rank)


def _free_port(host: str) -> int:
    """Nobody else's now; the leader serves the store there in a moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
