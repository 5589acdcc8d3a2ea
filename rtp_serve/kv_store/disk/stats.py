"""What a disk tier tells about itself."""

from dataclasses import dataclass

from rtp_serve.kv_store.disk.health import TierState


@dataclass(slots=True)
class DiskCounts:
    """Blocks since the tier was opened, unless said otherwise."""

    hits: int = 0
    misses: int = 0
    stored: int = 0
    refused: int = 0
    """Not taken: the disk is degraded or full, or the block is too large, or not whole."""

    evictions: int = 0
    rewritten: int = 0
    """Kept when their segment went."""

    mismatches: int = 0
    lost_segments: int = 0
    """Segments that had no header any more, or whose file was gone."""

    written_bytes: int = 0
    """Of records, those rewritten included."""


@dataclass(frozen=True, slots=True)
class DiskStats:
    """The present, and counts since the beginning."""

    state: TierState
    num_blocks: int
    num_segments: int
    live_bytes: int
    """Of records that can be found."""

    used_bytes: int
    """Of the cap; what the directory takes on the disk is never more."""

    max_bytes: int
    num_errors: int
    """Of the disk, when it was to be written."""

    counts: DiskCounts
