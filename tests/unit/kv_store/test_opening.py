"""From configuration to a store, in the system's shared memory."""

import os
from pathlib import Path

import pytest

from rtp_serve.clock import WallClock
from rtp_serve.config.kv_store import KVStoreConfig
from rtp_serve.kv_cache.spec import KVCacheSpec, TileOrder
from rtp_serve.kv_store.arena_files import MIN_ARENA_BYTES
from rtp_serve.kv_store.opening import OpenedStore, join_arena, open_local
from rtp_serve.kv_store.reservation import Reservation
from tests.unit.kv_store.arenas import content
from tests.unit.kv_store.blocks import make_chain, requests_of

SPEC = KVCacheSpec(num_layers=4, num_kv_heads=4, head_dim=64)
ORDER = TileOrder.WORDS
CLOCK = WallClock()


def make_config(**host: object) -> KVStoreConfig:
    host = {"enable": True, "memory": MIN_ARENA_BYTES, **host}
    return KVStoreConfig(host=host, application=f"test-opening-{os.getpid()}")


def open_here(config: KVStoreConfig, tmp_path: Path) -> OpenedStore:
    opened = open_local(config, SPEC, ORDER, CLOCK, tmp_path)
    assert opened is not None
    return opened


def test_a_local_store_finds_what_was_put(tmp_path: Path):
    opened = open_here(make_config(), tmp_path)
    chain = make_chain(3)
    for reservation in opened.client.reserve(requests_of(chain), "me"):
        assert isinstance(reservation, Reservation)
        source = content(reservation.request.key.hex(), SPEC.block_bytes)
        assert opened.member.arena.put([reservation], [source], CLOCK.monotonic()) == [True]
        assert opened.client.complete([reservation]) == (True,)
    assert len(opened.client.find(chain, "me")) == 3
    opened.close()


def test_closing_leaves_no_file(tmp_path: Path):
    opened = open_here(make_config(), tmp_path)
    assert opened.member.path.exists()
    opened.close()
    assert not opened.member.path.exists()


def test_a_second_owner_goes_without_and_the_first_keeps_its_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    opened = open_here(make_config(), tmp_path)
    assert open_local(make_config(), SPEC, ORDER, CLOCK, tmp_path) is None
    assert len(caplog.records) == 1
    assert opened.member.path.exists()
    opened.close()
    open_here(make_config(), tmp_path).close()


def test_there_is_no_store_where_there_is_no_room(tmp_path: Path):
    assert open_local(make_config(memory=1 << 20), SPEC, ORDER, CLOCK, tmp_path) is None


def test_a_long_name_and_a_node_of_ray_fit(tmp_path: Path):
    config = make_config().model_copy(update={"application": "a" * 64})
    member = join_arena(config, SPEC, ORDER, node="0" * 56)
    assert member is not None
    member.path.unlink()
    member.leave()
