"""Caches as those see them who look after them: a store's blocks told, trimmed and pinned."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rtp_serve.engine.async_engine import AsyncEngine
from rtp_serve.engine.cache_control import CacheControl
from rtp_serve.engine.core import EngineCore
from rtp_serve.engine.request import SequenceDelta
from rtp_serve.errors import EngineDead, NoKVTiers
from rtp_serve.kv_store.index_stats import SlabState
from rtp_serve.kv_store.tier_counts import Tier
from rtp_serve.observability.metrics import PrometheusSink
from tests.factories import make_core, make_prompt, make_request
from tests.unit.engine.test_tiering import BLOCK_BYTES, Node, run, tiered_core

EVERYTHING = 1 << 30


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(num_slabs=32, disk=tmp_path / "disk")
    yield node
    node.store.close()


@pytest.fixture
def core(node: Node) -> Iterator[EngineCore]:
    core = tiered_core(node)
    yield core
    core.shutdown()


def num_ready(node: Node) -> int:
    return node.store.stats().host.slabs_by_state[SlabState.READY]


def test_without_tiers_the_device_is_all_there_is():
    core = make_core(num_blocks=20)
    run(core, make_request(prompt=make_prompt(40), max_tokens=2))
    control = CacheControl(core)
    stats = control.stats()
    assert stats.tiers is None
    assert stats.device.num_blocks == 19
    assert (stats.device.num_held, stats.device.num_cached) == (0, 2)
    assert stats.device.block_size == 16
    assert control.metrics_text() == ""
    with pytest.raises(NoKVTiers, match=r"kv_store\.host\.enable"):
        control.trim(1)
    with pytest.raises(NoKVTiers):
        control.pin(make_prompt(40), "", 60.0)


def test_stats_tell_the_engines_counts_and_the_stores(core: EngineCore, node: Node):
    run(core, make_request(prompt=make_prompt(100), max_tokens=2))
    tiers = CacheControl(core).stats().tiers
    assert tiers is not None
    assert tiers.store == "store"
    assert tiers.counts[Tier.HOST].stored == 6
    assert tiers.stats.host == node.store.stats().host


def test_a_trim_frees_at_least_what_was_asked(core: EngineCore, node: Node):
    run(core, make_request(prompt=make_prompt(100), max_tokens=2))
    node.settle()
    trimmed = CacheControl(core).trim(BLOCK_BYTES + 1)
    slab_bytes = node.store.stats().slab_bytes
    assert (trimmed.store, trimmed.num_bytes) == ("store", 2 * slab_bytes)
    assert num_ready(node) == 4
    assert CacheControl(core).trim(EVERYTHING).num_bytes == 4 * slab_bytes


def test_a_pinned_prefix_outlives_what_else_is_there(core: EngineCore, node: Node):
    prompt = make_prompt(100)
    for salt in ("alice", "bob"):
        run(core, make_request(salt, prompt, salt=salt, max_tokens=2))
    node.settle()
    pinned = CacheControl(core).pin(prompt[:70], "alice", 60.0)
    assert (pinned.num_blocks, pinned.num_tokens) == (4, 64), "only full blocks"
    CacheControl(core).trim(EVERYTHING)
    assert num_ready(node) == 4
    assert node.store.stats().host.num_pins == 4
    core.shutdown()
    node.store.end_the_dead()
    assert num_ready(node) == 4, "a pin is no engine's"


def test_a_pin_ends_with_its_time(core: EngineCore, node: Node):
    prompt = make_prompt(100)
    run(core, make_request(prompt=prompt, max_tokens=2))
    assert CacheControl(core).pin(prompt, "", 1e-9).num_blocks == 6
    node.store.end_the_dead()
    assert node.store.stats().host.num_pins == 0


@pytest.mark.parametrize(("length", "salt"), [(15, ""), (100, "other")])
def test_what_nobody_stored_is_not_pinned(core: EngineCore, length: int, salt: str):
    prompt = make_prompt(100)
    run(core, make_request(prompt=prompt, max_tokens=2))
    assert CacheControl(core).pin(prompt[:length], salt, 60.0).num_blocks == 0


def test_a_pin_is_for_the_version_that_new_requests_run_on(core: EngineCore):
    prompt = make_prompt(100)
    run(core, make_request("old", prompt, max_tokens=2))
    core.switch(core.load())
    assert CacheControl(core).pin(prompt, "", 60.0).num_blocks == 0
    run(core, make_request("new", prompt, max_tokens=2))
    assert CacheControl(core).pin(prompt, "", 60.0).num_blocks == 6


def figures(text: str) -> dict[tuple[str, str], float]:
    """(name, tier) → value"""
    return {
        (sample.name.removeprefix("rtp_serve:"), sample.labels.get("tier", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_goes_between_the_tiers_is_counted_by_tier(node: Node):
    sink = PrometheusSink()
    core = tiered_core(node, sink=sink)
    requests = [make_request(f"r{i}", make_prompt(170, i), max_tokens=4) for i in range(3)]
    for request in (*requests, *requests):
        run(core, request)
    counts = core.tiers.counts[Tier.HOST]
    told = figures(sink.render())
    assert told["kv_tier_restored_blocks_total", "host"] == counts.restored > 0
    assert told["kv_tier_restore_seconds_total", "host"] == pytest.approx(counts.restore_s)
    assert told["kv_tier_stored_blocks_total", "host"] == counts.stored >= 30
    assert ("kv_tier_mismatches_total", "host") not in told
    node.arena._payloads[:] ^= 255
    for request in requests:
        run(core, request)
    told = figures(sink.render())
    assert told["kv_tier_mismatches_total", "host"] == counts.mismatches > 0
    core.shutdown()


def test_the_stores_figures_are_asked_for_with_the_engines(core: EngineCore, node: Node):
    async def scenario() -> None:
        engine = AsyncEngine(core, max_queued=10, render_metrics=lambda: "own 1.0\n")
        request = make_request(prompt=make_prompt(100), max_tokens=2)
        assert [each async for each in engine.generate(request)]
        told = figures(await engine.metrics_text())
        assert told["own", ""] == 1
        slab_bytes = node.store.stats().slab_bytes
        assert told["kv_store_capacity_bytes", "host"] == 32 * slab_bytes
        assert told["kv_store_capacity_bytes", "disk"] == 8 << 20
        while told["kv_store_stored_total", "host"] < 6:
            told = figures(await engine.metrics_text())
        assert told["kv_store_used_bytes", "host"] == 6 * slab_bytes
        assert told["kv_store_misses_total", "host"] == 6
        (stats,) = await engine.cache_stats()
        assert stats.tiers is not None
        (pinned,) = await engine.pin_prefix(request.prompt_token_ids, "", 60.0)
        assert pinned.num_tokens == 96
        (trimmed,) = await engine.trim_cache(EVERYTHING)
        assert trimmed.num_bytes == 0
        engine.shutdown()
        with pytest.raises(EngineDead):
            await engine.cache_stats()

    asyncio.run(scenario())


def test_tiers_never_claim_more_than_was_cached():
    delta = SequenceDelta(
        "r", 0, num_cached_tokens=64, num_host_tokens=48, num_disk_tokens=64
    ).cached
    assert delta == (64, 48, 16, 0)
    assert delta.device == 0
