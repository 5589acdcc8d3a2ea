"""Eviction policies by name, each made from a capacity in blocks."""

from collections.abc import Callable

from rtp_serve.kv_store.eviction_policy import EvictionPolicy
from rtp_serve.registry import Registry

PolicyFactory = Callable[[int], EvictionPolicy]

_EVICTION = "rtp_serve.kv_store.eviction"

POLICIES = Registry[PolicyFactory](
    "eviction policy",
    {
        "lru": f"{_EVICTION}.lru:LRU",
        "arc": f"{_EVICTION}.arc:ARC",
        "s3-fifo": f"{_EVICTION}.s3_fifo:S3FIFO",
        "duel": f"{_EVICTION}.duel:Duel",
    },
)


def make_policy(name: str, capacity: int) -> EvictionPolicy:
    """An empty policy for `capacity` blocks. Raises ConfigError for an unknown name."""
    return POLICIES.load(name)(capacity)
