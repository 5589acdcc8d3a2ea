"""Which replicas speak for the stores of their nodes."""

from deployments.replica_client import one_of_each_store
from rtp_serve.engine.cache_answers import CacheStats, DeviceStats, TiersStats
from rtp_serve.kv_store.client import StoreStats
from rtp_serve.kv_store.index_stats import IndexStats


def cache_of(replica: str, store: str | None, is_answering: bool = True) -> CacheStats:
    stats = StoreStats(IndexStats({}, {}, 0, 0, 0), 64, 8 if is_answering else 0, None, 0, 0)
    tiers = TiersStats(store, {}, stats) if store is not None else None
    return CacheStats(replica, DeviceStats(10, 0, 0, 16), tiers)


def test_one_replica_speaks_for_a_store():
    chosen = one_of_each_store([cache_of("a", "x"), cache_of("b", "x"), cache_of("c", "y")])
    assert len(chosen) == 2
    assert "c" in chosen


def test_it_is_one_that_the_store_answers_if_there_is_one():
    assert one_of_each_store([cache_of("a", "x"), cache_of("b", "x", False)]) == {"a"}
    assert one_of_each_store([cache_of("a", "x", False), cache_of("b", "x")]) == {"b"}
    assert one_of_each_store([cache_of("a", "x", False)]) == {"a"}


def test_replicas_without_tiers_speak_for_nobody():
    assert one_of_each_store([cache_of("a", None)]) == frozenset()
