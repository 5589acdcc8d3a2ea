"""How an engine replica uses its node's KV store: the arena by itself, the actor for metadata.

Whatever happens to the actor or to Ray, the engine sees a store in which nothing is found.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from deployments.actors import IDLE_EXIT_S, StorePlan, find_or_start
from deployments.other_stores import OtherStores
from deployments.store_connection import StoreConnection
from rtp_serve.clock import Clock
from rtp_serve.config.kv_store import KVStoreConfig
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_cache.spec import KVCacheSpec, TileOrder
from rtp_serve.kv_store.client import (
    FetchedBlock,
    Found,
    StoreStats,
    TierNews,
    TierPosition,
)
from rtp_serve.kv_store.disk.record import DiskLocation
from rtp_serve.kv_store.index_stats import IndexStats
from rtp_serve.kv_store.lease import Lease, Location
from rtp_serve.kv_store.member import member_name
from rtp_serve.kv_store.opening import OpenedStore, disk_directory, join_arena
from rtp_serve.kv_store.reservation import Refusal, RefusalReason, Reservation, StoreRequest
from rtp_serve.kv_store.tier_counts import Tier

_START_TIMEOUT_S = 5.0
_CALL_TIMEOUT_S = 1.0
_FIND_TIMEOUT_S = 0.3
"""A request waits for it: computing some blocks again would take no longer."""

_NO_LEASE = 0
"""The index numbers leases from its epoch on, so none has this number."""

Answer = TypeVar("Answer")


def connect_store(
    config: KVStoreConfig,
    spec: KVCacheSpec,
    order: TileOrder,
    clock: Clock,
    cache_root: Path,
    idle_exit_s: float = IDLE_EXIT_S,
) -> OpenedStore | None:
    """This process as a member of its Ray node's store; None if there is no room for an arena.

    Waits for the actor, which a node's first member starts, so that a replica that serves finds
    what is there; without it the engine goes on, and has it when it comes. It ends `idle_exit_s`
    after the last member of the node.
    """
    node = ray.get_runtime_context().get_node_id()
    member = join_arena(config, spec, order, node)
    if member is None:
        return None
    plan = StorePlan(config, spec, order, node, cache_root)
    others = OtherStores(plan, clock) if config.remote.enable else None
    connection = StoreConnection(lambda: find_or_start(plan, idle_exit_s), member_name(), clock)
    connection.wait(_START_TIMEOUT_S)
    disk = disk_directory(config.disk, cache_root, member.arena.geometry.layout_digest)
    return OpenedStore(member, ActorStoreClient(connection, others), disk)


class ActorStoreClient:
    """A StoreClient whose store is a KVStoreActor. Not for event loops: calls block, for a second
    at most."""

    def __init__(self, connection: StoreConnection, others: OtherStores | None = None) -> None:
        """`connection` is the client's from now on; `others` is None where no other node is to be
        asked."""
        self.connection = connection
        self._others = others

    def reserve(
        self, requests: Sequence[StoreRequest], owner: str
    ) -> tuple[Reservation | Refusal, ...]:
        full = tuple(Refusal(request.key, RefusalReason.FULL) for request in requests)
        return self._ask(lambda actor: actor.reserve.remote(requests, owner), full)

    def complete(self, reservations: Sequence[Reservation]) -> tuple[bool, ...]:
        lost = (False,) * len(reservations)
        return self._ask(lambda actor: actor.complete.remote(reservations), lost)

    def abandon(self, reservations: Sequence[Reservation]) -> None:
        self._tell(lambda actor: actor.abandon.remote(reservations))

    def find(self, chain: Sequence[BlockHash], owner: str) -> Found:
        nothing = Found(Lease(_NO_LEASE, owner, (), 0.0))
        return self._ask(lambda actor: actor.find.remote(chain, owner), nothing, _FIND_TIMEOUT_S)

    def fetch(self, chain: Sequence[BlockHash]) -> Sequence[FetchedBlock]:
        return self._others.fetch(chain) if self._others is not None else ()

    def release(self, lease_id: int) -> None:
        if lease_id != _NO_LEASE:
            self._tell(lambda actor: actor.release.remote(lease_id))

    def mismatch(self, location: Location | DiskLocation) -> None:
        # Waits: the next `find` is not to give the same.
        self._ask(lambda actor: actor.mismatch.remote(location), None)

    def pin(self, chain: Sequence[BlockHash], owner: str, expires_s: float | None) -> int:
        return self._ask(lambda actor: actor.pin.remote(chain, owner, expires_s), 0)

    def note_decoding(self, owner: str, is_decoding: bool) -> None:
        self._tell(lambda actor: actor.note_decoding.remote(owner, is_decoding))

    def news(self, known: Mapping[Tier, TierPosition]) -> tuple[TierNews, ...]:
        return self._ask(lambda actor: actor.news.remote(known), ())

    def trim(self, num_bytes: int) -> int:
        return self._ask(lambda actor: actor.trim.remote(num_bytes), 0)

    def stats(self) -> StoreStats:
        nothing = StoreStats(IndexStats({}, {}, 0, 0, 0), 0, 0, None, 0, 0)
        return self._ask(lambda actor: actor.stats.remote(), nothing)

    def close(self) -> None:
        self.connection.close()

    def _ask(
        self,
        call: Callable[[Any], ray.ObjectRef],
        otherwise: Answer,
        timeout_s: float = _CALL_TIMEOUT_S,
    ) -> Answer:
        """The actor's answer, or `otherwise` if it gives none in time."""
        actor = self.connection.actor
        if actor is None:
            return otherwise
        try:
            return ray.get(call(actor), timeout=timeout_s)
        except RayError as error:
            self.connection.lost(actor, error)
            return otherwise

    def _tell(self, call: Callable[[Any], ray.ObjectRef]) -> None:
        """Without waiting. If the actor does not hear it, deadlines do the same, later."""
        actor = self.connection.actor
        if actor is None:
            return
        try:
            call(actor)
        except RayError as error:
            self.connection.lost(actor, error)
