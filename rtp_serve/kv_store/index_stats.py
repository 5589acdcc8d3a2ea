"""What an index tells about itself."""

from dataclasses import dataclass, field
from enum import StrEnum

from rtp_serve.kv_cache.block import BlockHash


class SlabState(StrEnum):
    """Every slab is in exactly one."""

    FREE = "free"
    RESERVED = "reserved"
    READY = "ready"
    LEASED = "leased"
    """READY, and read by somebody."""

    EVICTING = "evicting"
    QUARANTINED = "quarantined"


@dataclass(slots=True)
class IndexCounts:
    """Blocks since the index began."""

    hits: int = 0
    misses: int = 0
    stored: int = 0
    refused_full: int = 0
    evictions: int = 0
    orphaned: int = 0
    """Lost because a block before them was."""

    reaped: int = 0
    """Reservations that ran out."""

    mismatches: int = 0
    stale: int = 0
    """Reports about a generation that the index no longer has."""


@dataclass(frozen=True, slots=True)
class IndexStats:
    """The present, and counts since the beginning."""

    slabs_by_state: dict[SlabState, int]
    bytes_by_tenant: dict[str, int]
    """Of slabs that are reserved, readable or going; tenants without any are left out."""

    num_leases: int
    num_pins: int
    version: int
    """Of the latest event."""

    counts: IndexCounts = field(default_factory=IndexCounts)


@dataclass(frozen=True, slots=True)
class IndexSnapshot:
    """All that can be found, as of an event's version; parents come before their children."""

    version: int
    keys: tuple[BlockHash, ...]
