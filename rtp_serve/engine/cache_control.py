"""An engine's caches for those who look after them, from outside of its thread.

Calls wait for the node's store, which may be another process; the engine goes on meanwhile.
"""

from collections.abc import Mapping, Sequence

from rtp_serve.engine.cache_answers import CacheStats, DeviceStats, Pinned, TiersStats, Trimmed
from rtp_serve.engine.core import EngineCore
from rtp_serve.errors import NoKVTiers
from rtp_serve.kv_store.client import TierNews, TierPosition
from rtp_serve.kv_store.exposition import render_store
from rtp_serve.kv_store.lower_tiers import LowerTiers
from rtp_serve.kv_store.tier_counts import Tier


class CacheControl:
    """For any thread that may wait."""

    def __init__(self, core: EngineCore) -> None:
        self._core = core

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return self._core.block_size

    @property
    def version(self) -> int:
        """Of the model that new requests run on."""
        return self._core.version.number

    def stats(self) -> CacheStats:
        """The present, and counts. A store that does not answer has none."""
        stats = self._core.stats
        device = DeviceStats(
            num_blocks=stats.num_blocks,
            num_held=stats.num_blocks - stats.num_free_blocks,
            num_cached=stats.num_cached_blocks,
            block_size=self._core.block_size,
        )
        return CacheStats("engine", device, self._tiers_stats())

    def news(self, known: Mapping[Tier, TierPosition]) -> tuple[TierNews, ...]:
        """See `StoreClient.news`; nothing without tiers."""
        tiers = self._core.tiers
        return tiers.news(known) if tiers is not None else ()

    def trim(self, num_bytes: int) -> Trimmed:
        """Have the arena give up blocks of at least so many bytes. Raises NoKVTiers."""
        tiers = self._tiers()
        return Trimmed(tiers.store_name, tiers.trim(num_bytes))

    def pin(self, token_ids: Sequence[int], cache_salt: str, ttl_s: float) -> Pinned:
        """Keep what the arena has of a prefix's full blocks for so long. Raises NoKVTiers.

        The prefix is one of the model version that new requests run on.
        """
        tiers = self._tiers()
        chain = self._core.model.block_hashes(token_ids, cache_salt)
        num_blocks = tiers.pin(chain, ttl_s) if chain else 0
        return Pinned(tiers.store_name, num_blocks, num_blocks * self._core.block_size)

    def metrics_text(self) -> str:
        """The store's figures in Prometheus text format; empty without one, or if it is silent."""
        tiers = self._tiers_stats()
        if tiers is None or not tiers.stats.is_answering:
            return ""
        return render_store(tiers.store, tiers.stats)

    def _tiers(self) -> LowerTiers:
        tiers = self._core.tiers
        if tiers is None:
            raise NoKVTiers
        return tiers

    def _tiers_stats(self) -> TiersStats | None:
        tiers = self._core.tiers
        if tiers is None:
            return None
        return TiersStats(tiers.store_name, dict(tiers.counts), tiers.store_stats())
