"""A store's figures as Prometheus text, made when somebody asks.

Replicas of a node all tell those of the one store: its name is a label.
"""

from collections.abc import Iterator
from typing import TypeAlias

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from rtp_serve.kv_store.client import StoreStats
from rtp_serve.kv_store.index_stats import SlabState
from rtp_serve.kv_store.tier_counts import Tier
from rtp_serve.observability.metrics import PREFIX

Family: TypeAlias = CounterMetricFamily | GaugeMetricFamily
ByTier: TypeAlias = dict[Tier, float]


def render_store(name: str, stats: StoreStats) -> str:
    """The Prometheus text format."""
    registry = CollectorRegistry()
    registry.register(_Store(name, stats))
    return generate_latest(registry).decode()


class _Store(Collector):
    def __init__(self, name: str, stats: StoreStats) -> None:
        self._name = name
        self._stats = stats

    def collect(self) -> Iterator[Family]:
        """For the registry."""
        stats = self._stats
        yield self._gauge("kv_store_capacity_bytes", "Bytes that a tier may hold.", self._sizes())
        yield self._gauge("kv_store_used_bytes", "Bytes of blocks that a tier holds.", self._used())
        for name, text, values in self._counts():
            yield self._family(CounterMetricFamily, name, text, values)
        yield self._gauge(
            "kv_store_queue_blocks", "Blocks that wait for a tier.", {Tier.DISK: stats.num_to_spill}
        )
        host = stats.host
        yield self._gauge("kv_store_pins", "Pins of blocks.", {Tier.HOST: host.num_pins})
        yield self._gauge("kv_store_leases", "Reads under way.", {Tier.HOST: host.num_leases})

    def _sizes(self) -> ByTier:
        stats = self._stats
        sizes: ByTier = {Tier.HOST: stats.num_slabs * stats.slab_bytes}
        if stats.disk is not None:
            sizes[Tier.DISK] = stats.disk.max_bytes
        return sizes

    def _used(self) -> ByTier:
        stats = self._stats
        num_free = stats.host.slabs_by_state.get(SlabState.FREE, 0)
        used: ByTier = {Tier.HOST: (stats.num_slabs - num_free) * stats.slab_bytes}
        if stats.disk is not None:
            used[Tier.DISK] = stats.disk.used_bytes
        return used

    def _counts(self) -> Iterator[tuple[str, str, ByTier]]:
        host = self._stats.host.counts
        disk = self._stats.disk.counts if self._stats.disk is not None else None
        for field, text in (
            ("hits", "Blocks looked up and found."),
            ("misses", "Blocks looked up and not found."),
            ("stored", "Blocks stored."),
            ("evictions", "Blocks evicted."),
            ("mismatches", "Blocks that readers found damaged or replaced."),
        ):
            values: ByTier = {Tier.HOST: getattr(host, field)}
            if disk is not None:
                values[Tier.DISK] = getattr(disk, field)
            yield f"kv_store_{field}", text, values
        refused: ByTier = {Tier.HOST: host.refused_full}
        if disk is not None:
            refused[Tier.DISK] = self._stats.num_not_spilled
        yield "kv_store_refused", "Blocks not taken: no room, or too many waited.", refused

    def _gauge(self, name: str, text: str, values: ByTier) -> Family:
        return self._family(GaugeMetricFamily, name, text, values)

    def _family(self, kind: type[Family], name: str, text: str, values: ByTier) -> Family:
        family = kind(PREFIX + name, text, labels=("store", "tier"))
        for tier, value in values.items():
            family.add_metric((self._name, tier.value), value)
        return family
