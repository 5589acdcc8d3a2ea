"""Engines' answers → the body of GET /cache/stats.

Replicas of a node share a store, so each store is there once, however many tell of it.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TypedDict

from rtp_serve.engine.cache_answers import CacheStats
from rtp_serve.kv_store.client import StoreStats


class ReplicaReport(TypedDict):
    replica: str
    device: dict[str, int]
    """See DeviceStats."""

    store: str | None
    """The name of the node's store; null without tiers below the device."""

    tiers: dict[str, dict[str, float]]
    """What went between the device and each of them, see TierCounts."""

    pinned: list[dict[str, Any]]
    """What the configuration wants kept, see KeptPrefix."""


class StoreReport(TypedDict):
    store: str
    is_answering: bool
    """If not, all below is empty."""

    host: dict[str, Any]
    disk: dict[str, Any] | None
    """See DiskStats; null without a disk tier."""

    num_to_spill: int
    num_not_spilled: int


class CacheReport(TypedDict):
    replicas: list[ReplicaReport]
    stores: list[StoreReport]


def report(answers: Sequence[CacheStats]) -> CacheReport:
    """Sorted by name."""
    stores: dict[str, StoreStats] = {}
    for each in answers:
        if each.tiers is None:
            continue
        if each.tiers.store not in stores or each.tiers.stats.is_answering:
            stores[each.tiers.store] = each.tiers.stats
    return {
        "replicas": [_replica(each) for each in sorted(answers, key=lambda each: each.replica)],
        "stores": [_store(name, stores[name]) for name in sorted(stores)],
    }


def _replica(answer: CacheStats) -> ReplicaReport:
    tiers = answer.tiers
    return {
        "replica": answer.replica,
        "device": asdict(answer.device),
        "store": tiers.store if tiers is not None else None,
        "tiers": {
            tier.value: asdict(counts)
            for tier, counts in (tiers.counts if tiers is not None else {}).items()
        },
        "pinned": [asdict(each) for each in (tiers.pinned if tiers is not None else ())],
    }


def _store(name: str, stats: StoreStats) -> StoreReport:
    host = stats.host
    return {
        "store": name,
        "is_answering": stats.is_answering,
        "host": {
            "num_slabs": stats.num_slabs,
            "slab_bytes": stats.slab_bytes,
            "slabs_by_state": host.slabs_by_state,
            "bytes_by_tenant": {
                _printable(tenant): size for tenant, size in host.bytes_by_tenant.items()
            },
            "num_leases": host.num_leases,
            "num_pins": host.num_pins,
            "counts": asdict(host.counts),
        },
        "disk": asdict(stats.disk) if stats.disk is not None else None,
        "num_to_spill": stats.num_to_spill,
        "num_not_spilled": stats.num_not_spilled,
    }


def _printable(tenant: str) -> str:
    """A salt may be any string, JSON is UTF-8."""
    return tenant.encode("utf-8", "backslashreplace").decode()
