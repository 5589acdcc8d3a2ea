"""What nodes have in memory and on disk, and how long it takes to bring it to a device.

A node's tiers hold chains from their beginnings (blocks are stored as they are computed, leaves go
first), so what a node gives of a prompt is one run from its start.
"""

import numpy as np

from rtp_serve.config.routing import TierConfig
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.routing.block_stream import BlockDelta, SnapshotPage, StreamOutcome, Tier
from rtp_serve.routing.prefix_index import PrefixIndex
from rtp_serve.routing.slots import Slots
from rtp_serve.routing.types import Floats, Ints


class LowerTiers:
    """One index a tier, over nodes."""

    def __init__(self, nodes: Slots, config: TierConfig) -> None:
        self._nodes = nodes
        self._indexes = {tier: PrefixIndex(nodes) for tier in (Tier.HOST, Tier.DISK)}
        self._token_s = {
            Tier.HOST: 1 / config.host_tokens_per_s,
            Tier.DISK: 1 / config.disk_tokens_per_s,
        }

    def __len__(self) -> int:
        """Different blocks, by tier."""
        return sum(map(len, self._indexes.values()))

    def apply(self, delta: BlockDelta) -> StreamOutcome:
        self._nodes.add(delta.holder)
        return self._indexes[delta.tier].apply(delta)

    def apply_page(self, page: SnapshotPage) -> StreamOutcome:
        self._nodes.add(page.holder)
        return self._indexes[page.tier].apply_page(page)

    def match(self, hashes: tuple[BlockHash, ...]) -> tuple[Ints, Floats]:
        """Blocks that each node would give, and seconds a token of them, [num_nodes]. The host
        gives what it has; only a disk that has more is asked."""
        host = self._indexes[Tier.HOST].match(hashes)
        disk = self._indexes[Tier.DISK].match(hashes)
        is_longer = disk > host
        seconds = np.where(is_longer, self._token_s[Tier.DISK], self._token_s[Tier.HOST])
        return np.where(is_longer, disk, host), seconds

    def check_invariants(self) -> None:
        for index in self._indexes.values():
            index.check_invariants()
