"""Actors beside Serve's replicas.

RankActor: a rank of an engine whose replica has several (`deployments/ranks.py`).

KVStoreActor: a node's KV store for all engine replicas of an application, and how it is found.

    node    replica ─┬─ calls, metadata alone ──► KVStoreActor   owns index and disk tier
            replica ─┤                               │
                     └── blocks ──► arena, disk ◄────┘

Its name says application, node and layout, so the first replica that asks makes it and the others
find it. It outlives the replica that made it, and Ray starts it again when it dies; what it knew is
in the arena and on the disk. It ends by itself, some time after the last replica of its node.
"""

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deployments.deferred_torch import defer_unused_torch
from rtp_serve.clock import WallClock
from rtp_serve.config.kv_store import KVStoreConfig
from rtp_serve.errors import StoreUnavailable
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_cache.spec import KVCacheSpec, TileOrder
from rtp_serve.kv_store.arena_files import ArenaFiles
from rtp_serve.kv_store.client import (
    FetchedBlock,
    Found,
    StoreStats,
    TierNews,
    TierPosition,
)
from rtp_serve.kv_store.disk.record import DiskLocation
from rtp_serve.kv_store.lease import Location
from rtp_serve.kv_store.members import Members
from rtp_serve.kv_store.opening import join_arena, layout_digest, open_node_store
from rtp_serve.kv_store.reservation import Refusal, Reservation, StoreRequest
from rtp_serve.kv_store.tier_counts import Tier
from rtp_serve.observability.logging import configure_logging
from rtp_serve.worker.ranks.plan import RankPlan

NAMESPACE = "rtp_serve"
"""Ray's, for names of actors that no Serve application owns."""

IDLE_EXIT_S = 60.0

_NUM_THREADS = 4
LOOKS = 4
"""How often an actor looks for who uses it in the time after which it ends."""

_KILL_AGAIN_S = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StorePlan:
    """What a node's store is made of. Processes that agree on it share the store."""

    config: KVStoreConfig
    spec: KVCacheSpec
    order: TileOrder
    node: str
    """Ray's id of the node."""

    cache_root: Path
    """Above the disk tier's directory, where the configuration does not say."""

    @property
    def actor_name(self) -> str:
        prefix, suffix = self._affixes
        return f"{prefix}{self.node}{suffix}"

    def is_another_node_s(self, actor_name: str) -> bool:
        """Whether so named is the store of another node that has the same blocks."""
        prefix, suffix = self._affixes
        is_alike = actor_name.startswith(prefix) and actor_name.endswith(suffix)
        return is_alike and actor_name != self.actor_name

    @property
    def _affixes(self) -> tuple[str, str]:
        digest = layout_digest(self.spec, self.order)
        return f"rtp_serve.kv_store.{self.config.application}.", f".{digest.hex()[:16]}"


def find_or_start(plan: StorePlan, idle_exit_s: float = IDLE_EXIT_S) -> ActorHandle:
    """The plan's actor, which may still be starting.

    Raises a RayError if Ray cannot say, ValueError if the name went meanwhile.
    """
    actor = ray.remote(KVStoreActor).options(
        name=plan.actor_name,
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        max_restarts=-1,
        max_concurrency=_NUM_THREADS,
        num_cpus=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(plan.node, soft=False),
    )
    return actor.remote(plan, idle_exit_s)


def end_this_actor() -> None:
    """For good, whatever it is doing; does not return."""
    # Of the ways to end this is the one that Ray takes for an intention and that needs no call in
    # progress: a process that only exits is started again.
    actor = ray.get_runtime_context().current_actor
    wait = threading.Event().wait
    while True:
        ray.kill(actor)
        wait(_KILL_AGAIN_S)


class RankActor:
    """A follower of the engine in its replica's process."""

    def follow(self, plan: bytes) -> None:
        """Until the leader ends; `plan` is an encoded RankPlan."""
        defer_unused_torch()
        # Imported here: processes that start this actor must stay free of torch.
        from rtp_serve.worker.ranks.joining import follow

        configure_logging()
        follow(msgspec.msgpack.decode(plan, type=RankPlan))


class KVStoreActor:
    """A NodeStore behind Ray: methods are those of a StoreClient, called by members of the arena.

    A constructor that raises ends the actor for good; the next member that asks starts another.
    """

    def __init__(self, plan: StorePlan, idle_exit_s: float) -> None:
        """Raises StoreUnavailable if there is no arena, or another process owns its index."""
        configure_logging()
        clock = WallClock()
        member = join_arena(plan.config, plan.spec, plan.order, plan.node)
        if member is None:
            raise StoreUnavailable(f"{plan.actor_name} has no arena")
        store = open_node_store(member, plan.config, clock, plan.cache_root)
        if store is None:
            raise StoreUnavailable(f"another process owns the index of {member.path}")
        self._member = member
        self._store = store
        self._members = Members(clock)
        self._idle_exit_s = idle_exit_s
        watch = threading.Thread(target=self._watch, name="kv-store-members", daemon=True)
        watch.start()

    def join(self, owner: str) -> int:
        """A process will use the store, or still does; this one's number."""
        self._come(owner)
        return os.getpid()

    def leave(self, owner: str) -> None:
        """A process that lives on will not use the store any more."""
        self._members.leave(owner)

    def reserve(
        self, requests: Sequence[StoreRequest], owner: str
    ) -> tuple[Reservation | Refusal, ...]:
        self._come(owner)
        return self._store.reserve(requests, owner)

    def complete(self, reservations: Sequence[Reservation]) -> tuple[bool, ...]:
        return self._store.complete(reservations)

    def abandon(self, reservations: Sequence[Reservation]) -> None:
        self._store.abandon(reservations)

    def find(self, chain: Sequence[BlockHash], owner: str) -> Found:
        self._come(owner)
        return self._store.find(chain, owner)

    def count(self, chain: Sequence[BlockHash]) -> int:
        """For another node's members, see `NodeStore.count`."""
        return self._store.count(chain)

    def read(self, chain: Sequence[BlockHash], owner: str) -> list[FetchedBlock]:
        """For another node's members: blocks go through Ray's object store."""
        return self._store.read(chain, owner)

    def release(self, lease_id: int) -> None:
        self._store.release(lease_id)

    def mismatch(self, location: Location | DiskLocation) -> None:
        self._store.mismatch(location)

    def pin(self, chain: Sequence[BlockHash], owner: str, expires_s: float | None) -> int:
        # Its owner may be no process, so it does not come.
        return self._store.pin(chain, owner, expires_s)

    def note_decoding(self, owner: str, is_decoding: bool) -> None:
        self._store.note_decoding(owner, is_decoding)

    def news(self, known: Mapping[Tier, TierPosition]) -> tuple[TierNews, ...]:
        return self._store.news(known)

    def trim(self, num_bytes: int) -> int:
        return self._store.trim(num_bytes)

    def stats(self) -> StoreStats:
        return self._store.stats()

    def _come(self, owner: str) -> None:
        if not self._members.come(owner):
            raise StoreUnavailable("the store is about to end: nobody used it")

    def _watch(self) -> None:
        """End this process, and the arena with it, when nobody uses it."""
        wait = threading.Event().wait
        while not self._members.close_if_idle(self._idle_exit_s):
            wait(self._idle_exit_s / LOOKS)
        self._store.close()
        self._member.leave()
        ArenaFiles().remove_unheld()
        logger.info("the KV store ends: nobody used it for %g s", self._idle_exit_s)
        end_this_actor()
