"""A holder's side of the block stream: counts versions and cuts snapshots into pages."""

from collections.abc import Iterable, Iterator, Sequence

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_cache.block_changes import BlockNews
from rtp_serve.kv_store.client import TierNews
from rtp_serve.routing.block_stream import BlockDelta, SnapshotPage, Tier

PAGE_BLOCKS = 4096
"""Hashes of a page, at most: 128 KiB."""


class BlockTeller:
    """Of one holder in one life. Each news is a version, and nothing else is."""

    def __init__(self, holder: str, epoch: int) -> None:
        self._holder = holder
        self._epoch = epoch
        self._version = 0

    def tell(self, news: BlockNews) -> BlockDelta | tuple[SnapshotPage, ...]:
        base, self._version = self._version, self._version + 1
        if news.is_all:
            return tuple(pages(self._holder, self._epoch, self._version, news.added))
        return BlockDelta(self._holder, self._epoch, base, self._version, news.added, news.removed)


def tell_store(
    store: str, news: Iterable[TierNews]
) -> tuple[tuple[BlockDelta, ...], tuple[SnapshotPage, ...]]:
    """Deltas and pages of a store's tiers."""
    deltas: list[BlockDelta] = []
    snapshots: list[SnapshotPage] = []
    for each in news:
        tier, blocks = Tier(each.tier.value), each.blocks
        epoch, version = each.position.epoch, each.position.version
        if blocks.is_all:
            snapshots += pages(store, epoch, version, blocks.added, tier)
        else:
            deltas.append(
                BlockDelta(store, epoch, each.since, version, blocks.added, blocks.removed, tier)
            )
    return tuple(deltas), tuple(snapshots)


def pages(
    holder: str,
    epoch: int,
    version: int,
    hashes: Sequence[BlockHash],
    tier: Tier = Tier.DEVICE,
) -> Iterator[SnapshotPage]:
    """Of a snapshot; one of nothing is one page, too."""
    num_pages = max(1, -(-len(hashes) // PAGE_BLOCKS))
    for page in range(num_pages):
        part = tuple(hashes[page * PAGE_BLOCKS : (page + 1) * PAGE_BLOCKS])
        yield SnapshotPage(holder, epoch, version, page, num_pages, part, tier)
