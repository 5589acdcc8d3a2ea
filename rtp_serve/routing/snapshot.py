"""All that a Master knows, frozen: for its successor, and for an ingress that must decide alone.

Who takes it over goes on from the versions in it; a holder whose next delta does not follow is
asked for its blocks, as after any gap.
"""

from dataclasses import dataclass

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.routing.types import WorkerStatus


@dataclass(frozen=True, slots=True)
class HolderBlocks:
    """What one holder has."""

    holder: str
    epoch: int
    version: int
    hashes: tuple[BlockHash, ...]


@dataclass(frozen=True, slots=True)
class WorkerSnapshot:
    """One worker, and what was sent to it."""

    status: WorkerStatus
    """Its last report, without what concerns single requests."""

    seen_s: float
    """When that came, on the clock of who took the snapshot."""

    coefficients: tuple[float, float, float]
    """Of its prefill times."""

    pending_s: float
    """Predicted for its queue when the snapshot was taken."""

    reserved_blocks: int
    """Promised to requests in flight."""


@dataclass(frozen=True, slots=True)
class RoutingSnapshot:
    """Of a Master."""

    taken_s: float
    workers: tuple[WorkerSnapshot, ...]
    blocks: tuple[HolderBlocks, ...]
    """Of devices; none if the snapshot was taken without."""
