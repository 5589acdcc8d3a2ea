"""How a holder of blocks (a worker's device, a store's tier) tells the Master what it has.

A holder counts its changes. A delta says from which count to which it leads; one that does not
begin where the last ended leaves a gap, and nothing but a snapshot closes it. A snapshot comes in
pages and counts when all of them are there: a part of it is never taken for the whole.
"""

from dataclasses import dataclass
from enum import Enum

from rtp_serve.kv_cache.block import BlockHash


class Tier(Enum):
    """Where blocks are. A device's holder is a worker, another tier's is a store."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"


@dataclass(frozen=True, slots=True)
class BlockDelta:
    """Changes of one holder. A hash is in one of the two at most."""

    holder: str

    epoch: int
    """Another number in each life of the holder, which begins without blocks at version 0."""

    base_version: int

    version: int
    """After it; more than `base_version`."""

    added: tuple[BlockHash, ...] = ()

    removed: tuple[BlockHash, ...] = ()

    tier: Tier = Tier.DEVICE


@dataclass(frozen=True, slots=True)
class SnapshotPage:
    """A part of all that a holder has at `version`."""

    holder: str

    epoch: int

    version: int

    page: int
    """From 0."""

    num_pages: int

    hashes: tuple[BlockHash, ...]

    tier: Tier = Tier.DEVICE


class StreamOutcome(Enum):
    """What came of a message."""

    APPLIED = "applied"
    PENDING = "pending"
    """Kept until the rest of the snapshot is there."""
    STALE = "stale"
    """Known already."""
    NEEDS_SNAPSHOT = "needs snapshot"
    """Something before it is missing: ask the holder for a snapshot."""
