"""What a disk tier is told, and how its cap is divided."""

from dataclasses import dataclass

from rtp_serve.errors import ConfigError
from rtp_serve.kv_store.disk.pages import PAGE_BYTES

DIRECTORY_BYTES = 64 << 10
"""Of the cap, for the directory itself and its lock."""

METADATA_BYTES = 16 << 10
"""Of the cap, for each segment: what the filesystem may come to need to find its pieces."""

_MIN_BYTES = 1 << 20
_MIN_SEGMENTS = 8
_SEGMENTS = 32
_SMALL_SEGMENT_BYTES = 16 << 20
"""Where a 32nd of the cap is less, an eighth may be, so that large blocks find room."""


@dataclass(frozen=True, slots=True)
class DiskSettings:
    """Limits of one tier."""

    max_bytes: int
    """Hard cap of what the directory takes on the disk, everything included."""

    segment_bytes: int = 256 << 20
    """What is reserved, and given back, at once. Smaller where the cap holds fewer than 32."""

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
        share = max(room // _SEGMENTS, min(room // _MIN_SEGMENTS, _SMALL_SEGMENT_BYTES))
        return min(self.segment_bytes, share - METADATA_BYTES) // PAGE_BYTES * PAGE_BYTES
