"""Blocks for sequences: prefix hits, room for a step's tokens, and giving back.

    |<- cached ->|<- computed ->|<- this step ->|<- not yet ->|
    blocks held: everything up to the end of "this step", rounded up to whole blocks

The manager knows token counts and hashes, neither scheduling policy nor tensors.
"""

from dataclasses import dataclass
from typing import Protocol

from rtp_serve.kv_cache.block import BlockHash, chain_hashes, root_hash
from rtp_serve.kv_cache.block_pool import BlockPool


class BlockHolder(Protocol):
    """What the manager keeps on a sequence."""

    token_ids: list[int]
    block_ids: list[int]
    block_hashes: list[BlockHash]
    num_registered_blocks: int
    num_computed_tokens: int

    @property
    def namespace(self) -> bytes:
        """The identity of the arithmetic: weights, rope, KV format, kernels."""
        ...

    @property
    def cache_salt(self) -> str: ...


@dataclass(frozen=True, slots=True)
class FreshBlock:
    """A block that can be found for the first time."""

    block_id: int
    key: BlockHash
    parent: BlockHash | None
    namespace: bytes
    salt: str


class KVCacheManager:
    """The block tables of all sequences over one pool."""

    def __init__(self, pool: BlockPool, block_size: int, enable_prefix_caching: bool) -> None:
        self.pool = pool
        self.block_size = block_size
        self._enable_prefix_caching = enable_prefix_caching
        self._roots: dict[tuple[bytes, str], BlockHash] = {}
        self._fresh: list[FreshBlock] | None = None

    @property
    def usage(self) -> float:
        """Share of the usable blocks that sequences hold, 0 to 1."""
        return 1.0 - self.pool.num_free / self.pool.num_usable

    def lookup_prefix(self, seq: BlockHolder) -> list[int]:
        """Cached blocks of the longest prefix, always leaving a token to compute. Holds nothing."""
        if not self._enable_prefix_caching:
            return []
        self._extend_hashes(seq)
        limit = (len(seq.token_ids) - 1) // self.block_size
        return self.pool.lookup(seq.block_hashes[:limit])

    def num_missing(self, seq: BlockHolder, num_cached: int) -> int:
        """Full blocks after `num_cached` cached ones that could be cached, had anybody them."""
        if not self._enable_prefix_caching:
            return 0
        return (len(seq.token_ids) - 1) // self.block_size - num_cached

    def keep_fresh(self) -> None:
        """From now on note blocks that become findable, for `take_fresh`."""
        self._fresh = []

    def take_fresh(self) -> list[FreshBlock]:
        """Those since the last call, parents first; they are full of KV once their step has run."""
        fresh, self._fresh = self._fresh or [], []
        return fresh

    def forget_all(self) -> None:
        """No block is findable afterwards, and none is fresh."""
        self.pool.clear_cache()
        if self._fresh is not None:
            self._fresh = []

    def start(self, seq: BlockHolder, cached_ids: list[int], num_new_tokens: int) -> bool:
        """Give a sequence that holds nothing its cached prefix and room for `num_new_tokens` more.

        False, and nothing changed, if there are too few free blocks.
        """
        assert not seq.block_ids, f"sequence holds {len(seq.block_ids)} blocks already"
        num_cached_tokens = len(cached_ids) * self.block_size
        needed = self._num_blocks(num_cached_tokens + num_new_tokens) - len(cached_ids)
        if needed > self.pool.num_free - self.pool.num_idle(cached_ids):
            return False
        self.pool.hold(cached_ids)
        seq.block_ids = cached_ids + self.pool.allocate(needed)
        seq.num_registered_blocks = len(cached_ids)
        seq.num_computed_tokens = num_cached_tokens
        self._register_full(seq, num_cached_tokens + num_new_tokens)
        return True

    def extend(self, seq: BlockHolder, num_new_tokens: int) -> list[int] | None:
        """Room for `num_new_tokens` after the computed ones: the blocks added, or None if full."""
        num_tokens = seq.num_computed_tokens + num_new_tokens
        needed = self._num_blocks(num_tokens) - len(seq.block_ids)
        added: list[int] = []
        if needed > 0:
            if needed > self.pool.num_free:
                return None
            added = self.pool.allocate(needed)
            seq.block_ids += added
        self._register_full(seq, num_tokens)
        return added

    def free(self, seq: BlockHolder) -> None:
        """Take all blocks back; full ones stay findable until they are evicted."""
        self.pool.release(seq.block_ids)
        seq.block_ids = []
        seq.num_registered_blocks = 0

    def _register_full(self, seq: BlockHolder, num_tokens: int) -> None:
        """Register blocks that will be full of KV when this step has run.

        They may be hit by a sequence of the very same step: each layer writes the keys and values
        of all tokens before any token attends.
        """
        if not self._enable_prefix_caching:
            return
        num_full = num_tokens // self.block_size
        if num_full <= seq.num_registered_blocks:
            return
        self._extend_hashes(seq)
        for i in range(seq.num_registered_blocks, num_full):
            parent = seq.block_hashes[i - 1] if i else None
            block_id, key = seq.block_ids[i], seq.block_hashes[i]
            is_fresh = self.pool.register(block_id, key, parent)
            if is_fresh and self._fresh is not None:
                self._fresh.append(FreshBlock(block_id, key, parent, seq.namespace, seq.cache_salt))
        seq.num_registered_blocks = num_full

    def _extend_hashes(self, seq: BlockHolder) -> None:
        parent = seq.block_hashes[-1] if seq.block_hashes else self._root(seq)
        rest = seq.token_ids[len(seq.block_hashes) * self.block_size :]
        seq.block_hashes += chain_hashes(parent, rest, self.block_size)

    def _root(self, seq: BlockHolder) -> BlockHash:
        """Computed per sequence start; the few salts of an application are remembered."""
        key = seq.namespace, seq.cache_salt
        if key not in self._roots:
            if len(self._roots) >= 1024:
                self._roots.clear()
            self._roots[key] = root_hash(*key)
        return self._roots[key]

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)
