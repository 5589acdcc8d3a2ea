"""Members of a node's KV store: this process, and others that do as they are told."""

import os
from collections.abc import Sequence
from pathlib import Path

import ray

from deployments.actors import StorePlan
from deployments.store_client import ActorStoreClient, connect_store
from rtp_serve.clock import WallClock
from rtp_serve.config.kv_store import KVStoreConfig
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_cache.spec import KVCacheSpec, TileOrder
from rtp_serve.kv_store.arena_files import MIN_ARENA_BYTES
from rtp_serve.kv_store.client import Found
from rtp_serve.kv_store.member import member_name
from rtp_serve.kv_store.opening import OpenedStore
from rtp_serve.kv_store.reservation import Reservation
from tests.unit.kv_store.arenas import content
from tests.unit.kv_store.blocks import requests_of

SPEC = KVCacheSpec(num_layers=4, num_kv_heads=4, head_dim=64)
ORDER = TileOrder.PLAIN
CONNECT_S = 30.0


class StoreMember:
    """A process that has joined, and puts and gets whole chains."""

    def __init__(self, application: str, cache_root: Path, idle_exit_s: float = 60.0) -> None:
        self._clock = WallClock()
        config = KVStoreConfig(
            host={"enable": True, "memory": MIN_ARENA_BYTES}, application=application
        )
        node = ray.get_runtime_context().get_node_id()
        self.plan = StorePlan(config, SPEC, ORDER, node, cache_root)
        opened = connect_store(config, SPEC, ORDER, self._clock, cache_root, idle_exit_s)
        assert opened is not None, "no room for an arena"
        assert isinstance(opened.client, ActorStoreClient)
        self.opened: OpenedStore = opened
        self.client: ActorStoreClient = opened.client
        self.owner = member_name()
        assert self.client.connection.wait(CONNECT_S)

    def put(self, chain: Sequence[BlockHash]) -> int:
        """How many blocks of a chain it could store."""
        reservations = self.reserve(chain)
        arena = self.opened.member.arena
        for reservation in reservations:
            source = content_of(reservation.request.key)
            assert arena.put([reservation], [source], self._clock.monotonic()) == [True]
        return sum(self.client.complete(reservations))

    def reserve(self, chain: Sequence[BlockHash]) -> list[Reservation]:
        answers = self.client.reserve(requests_of(chain), self.owner)
        return [answer for answer in answers if isinstance(answer, Reservation)]

    def find(self, chain: Sequence[BlockHash]) -> Found:
        return self.client.find(chain, self.owner)

    def count_right(self, chain: Sequence[BlockHash]) -> int:
        """How many blocks of a chain can be read, and are what was put."""
        found = self.find(chain)
        into = memoryview(bytearray(SPEC.block_bytes))
        num_right = 0
        for location in found.lease.locations:
            copies = self.opened.member.arena.read_into([location], [into])
            num_right += copies == [content_of(location.key)]
        self.client.release(found.lease.lease_id)
        return num_right


class OtherMember:
    """A StoreMember in a process of its own: a Ray actor."""

    def __init__(self, application: str, cache_root: Path, idle_exit_s: float = 60.0) -> None:
        self._member = StoreMember(application, cache_root, idle_exit_s)

    def pid(self) -> int:
        return os.getpid()

    def node(self) -> str:
        return self._member.plan.node

    def store_name(self) -> str:
        return self._member.plan.actor_name

    def put(self, chain: Sequence[BlockHash]) -> int:
        return self._member.put(chain)

    def count_right(self, chain: Sequence[BlockHash]) -> int:
        return self._member.count_right(chain)

    def hold(self, read: Sequence[BlockHash], written: Sequence[BlockHash]) -> tuple[int, int]:
        """Take a lease and reservations, and keep them."""
        return len(self._member.find(read)), len(self._member.reserve(written))


def content_of(key: BlockHash) -> memoryview:
    return content(key.hex(), SPEC.block_bytes)
