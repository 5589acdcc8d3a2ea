"""What a disk tier is told, and how its cap is divided."""

from dataclasses import dataclass

from rtp_serve.errors import ConfigError
from rtp_serve.kv_store.disk.pages import PAGE_BYTES
from rtp_serve.kv_store.disk.record import record_bytes

DIRECTORY_BYTES = 64 << 10
"""Of the cap, for the directory itself and its lock."""

METADATA_BYTES = 16 << 10
"""Of the cap, for each segment: what the filesystem may come to need to find its pieces."""

_MIN_BYTES = 1 << 20
_MIN_SEGMENTS = 8
_SEGMENTS = 128
"""One is kept free, so small ones waste less; each costs some syncs and a dozen calls."""
_MIN_BLOCKS = 4
"""Where a 128th of the cap has no room for so many, up to an eighth of the cap may be one segment.
"""


@dataclass(frozen=True, slots=True)
class DiskSettings:
    """Limits of one tier."""

    max_bytes: int
    """Hard cap of what the directory takes on the disk, everything included."""

    segment_bytes: int = 256 << 20
    """What is reserved, and given back, at once. Smaller where the cap holds fewer than 128."""

    block_bytes: int = 4 << 20
    """Of a payload, for which segments are to have room."""

    min_free_bytes: int = 1 << 30
    """No segment is added that would leave less than this free on the filesystem."""

    retry_s: float = 5.0
    """First wait after an error of the disk; it doubles with each that follows, up to 32 times."""

    def __post_init__(self) -> None:
        if self.max_bytes < _MIN_BYTES:
            raise ConfigError(f"max_bytes of a disk tier is {self.max_bytes}, under {_MIN_BYTES}")
        if self.segment_bytes < 4 * PAGE_BYTES:
            raise ConfigError(f"segment_bytes is {self.segment_bytes}, under {4 * PAGE_BYTES}")

    @property
    def file_bytes(self) -> int:
        """Of a new segment."""
        room = self.max_bytes - DIRECTORY_BYTES
        # One segment's worth is always kept free, so many small ones waste less.
        blocks_bytes = _MIN_BLOCKS * record_bytes(self.block_bytes)
        share = max(room // _SEGMENTS, min(room // _MIN_SEGMENTS, blocks_bytes))
        return min(self.segment_bytes, share - METADATA_BYTES) // PAGE_BYTES * PAGE_BYTES
