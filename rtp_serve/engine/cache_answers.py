"""What engines tell of their caches, and of the node's store that several of them may share."""

from collections.abc import Mapping
from dataclasses import dataclass

from rtp_serve.kv_store.client import StoreStats
from rtp_serve.kv_store.tier_counts import Tier, TierCounts


@dataclass(frozen=True, slots=True)
class DeviceStats:
    """An engine's own blocks at one moment."""

    num_blocks: int
    num_held: int
    """By sequences, and by copies to and from the tiers below."""

    num_cached: int
    """Those that can be found, held or free."""

    block_size: int
    """Tokens of a block."""


@dataclass(frozen=True, slots=True)
class TiersStats:
    """The tiers below one engine's device."""

    store: str
    """The name of the node's store: engines that share it say the same."""

    counts: Mapping[Tier, TierCounts]
    """What went between them and this engine."""

    stats: StoreStats
    """Of the store, for all of its engines."""

    pinned: tuple["KeptPrefix", ...] = ()
    """What the configuration wants kept."""


@dataclass(frozen=True, slots=True)
class CacheStats:
    """One engine's caches."""

    replica: str
    """The engine's name."""

    device: DeviceStats
    tiers: TiersStats | None
    """None where there are no tiers below the device."""


@dataclass(frozen=True, slots=True)
class KeptPrefix:
    """A prefix that the configuration names."""

    name: str
    num_tokens: int
    """In its full blocks."""

    num_pinned: int
    """Of those, in pinned blocks of the arena when it was last looked."""


@dataclass(frozen=True, slots=True)
class Trimmed:
    """What one store gave up."""

    store: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Pinned:
    """What one store keeps of a prefix."""

    store: str
    num_blocks: int
    num_tokens: int
    """In those blocks, from the prefix's beginning."""
