"""What stores have in memory and on disk, and how long it takes to bring it to a device.

A store's tiers hold chains from their beginnings (blocks are stored as they are computed, leaves go
first), so what a store gives of a prompt is one run from its start.
"""

from dataclasses import replace

import numpy as np

from rtp_serve.config.routing import TierConfig
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.client import TierPosition
from rtp_serve.routing.block_stream import BlockDelta, SnapshotPage, StreamOutcome, Tier
from rtp_serve.routing.prefix_index import PrefixIndex
from rtp_serve.routing.slots import Slots
from rtp_serve.routing.types import Floats, Ints


class LowerTiers:
    """One index a tier, over the stores that workers share."""

    def __init__(self, stores: Slots, config: TierConfig) -> None:
        self._stores = stores
        self._indexes = {tier: PrefixIndex(stores) for tier in (Tier.HOST, Tier.DISK)}
        self._token_s = {
            Tier.HOST: 1 / config.host_tokens_per_s,
            Tier.DISK: 1 / config.disk_tokens_per_s,
        }

    def __len__(self) -> int:
        """Different blocks, by tier."""
        return sum(map(len, self._indexes.values()))

    def num_blocks(self, store: str) -> int:
        """How many it has, counted in each tier."""
        return sum(index.num_blocks(store) for index in self._indexes.values())

    def positions(self, store: str) -> dict[Tier, TierPosition]:
        """How far a store was followed, tier by tier."""
        found = {tier: index.position(store) for tier, index in self._indexes.items()}
        return {tier: TierPosition(*each) for tier, each in found.items() if each is not None}

    def apply(self, delta: BlockDelta) -> StreamOutcome:
        """Any of a store's workers tells it, so its beginning may be known from another one: it has
        the last word on each block."""
        if delta.holder not in self._stores:
            return StreamOutcome.NEEDS_SNAPSHOT
        index = self._indexes[delta.tier]
        epoch, version = index.position(delta.holder) or (None, 0)
        if epoch == delta.epoch and delta.base_version < version < delta.version:
            delta = replace(delta, base_version=version)
        return index.apply(delta)

    def apply_page(self, page: SnapshotPage) -> StreamOutcome:
        if page.holder not in self._stores:
            return StreamOutcome.NEEDS_SNAPSHOT
        return self._indexes[page.tier].apply_page(page)

    def forget(self, store: str) -> None:
        """No worker shares it any more."""
        for index in self._indexes.values():
            index.forget(store)

    def match(self, hashes: tuple[BlockHash, ...]) -> tuple[Ints, Floats]:
        """Blocks that each store would give, and seconds a token of them, [num_stores]. The host
        gives what it has; only a disk that has more is asked."""
        host = self._indexes[Tier.HOST].match(hashes)
        disk = self._indexes[Tier.DISK].match(hashes)
        is_longer = disk > host
        seconds = np.where(is_longer, self._token_s[Tier.DISK], self._token_s[Tier.HOST])
        return np.where(is_longer, disk, host), seconds

    def check_invariants(self) -> None:
        for index in self._indexes.values():
            index.check_invariants()
