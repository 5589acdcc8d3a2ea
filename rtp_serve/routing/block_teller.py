"""A holder's side of the block stream: counts versions and cuts snapshots into pages."""

from collections.abc import Iterator

from rtp_serve.kv_cache.block_changes import BlockNews
from rtp_serve.routing.block_stream import BlockDelta, SnapshotPage

PAGE_BLOCKS = 4096
"""Hashes of a page, at most: 128 KiB."""


class BlockTeller:
    """Of one holder in one life. Each news is a version, and nothing else is."""

    def __init__(self, holder: str, epoch: int) -> None:
        self._holder = holder
        self._epoch = epoch
        self._version = 0

    def tell(self, news: BlockNews) -> BlockDelta | tuple[SnapshotPage, ...]:
        """A snapshot of nothing is one page, too."""
        base, self._version = self._version, self._version + 1
        if news.is_all:
            return tuple(self._pages(news))
        return BlockDelta(self._holder, self._epoch, base, self._version, news.added, news.removed)

    def _pages(self, news: BlockNews) -> Iterator[SnapshotPage]:
        num_pages = max(1, -(-len(news.added) // PAGE_BLOCKS))
        for page in range(num_pages):
            hashes = news.added[page * PAGE_BLOCKS : (page + 1) * PAGE_BLOCKS]
            yield SnapshotPage(self._holder, self._epoch, self._version, page, num_pages, hashes)
