"""What the tier's files take of its cap: counted before a file is made, until it is gone."""

from rtp_serve.kv_store.disk.settings import DIRECTORY_BYTES, METADATA_BYTES


class Space:
    """Never counts less than the disk does."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._by_segment: dict[int, int] = {}

    @property
    def used_bytes(self) -> int:
        """Of the cap."""
        return DIRECTORY_BYTES + METADATA_BYTES * len(self._by_segment) + self.file_bytes

    @property
    def file_bytes(self) -> int:
        """Of all files."""
        return sum(self._by_segment.values())

    @property
    def segments(self) -> set[int]:
        """Those whose files are counted."""
        return set(self._by_segment)

    def fits(self, file_bytes: int) -> bool:
        """Whether one more file does."""
        return self.used_bytes + METADATA_BYTES + file_bytes <= self.max_bytes

    def take(self, segment: int, file_bytes: int) -> None:
        """Count the segment's file, or count it anew."""
        self._by_segment[segment] = file_bytes

    def give_back(self, segment: int) -> None:
        """Its file is gone."""
        del self._by_segment[segment]
