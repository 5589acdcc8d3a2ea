"""Blocks for sequences: prefix hits, room for a step's tokens, and giving back.

    |<- cached ->|<- computed ->|<- this step ->|<- not yet ->|
    blocks held: everything up to the end of "this step", rounded up to whole blocks

The cached prefix is full blocks, and then the beginning of a donor: another block after the same
chain. If that has no more than is wanted and nobody holds it, the sequence takes it over and goes
on writing in it; else the sequence has a block of its own, and the donor is copied there before the
step runs.

The manager knows token counts and hashes, neither scheduling policy nor tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from rtp_serve.kv_cache.block import BlockContent, BlockHash, chain_hashes, root_hash
from rtp_serve.kv_cache.block_pool import BlockPool
from rtp_serve.kv_cache.donor_index import Donor


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
class PrefixHit:
    """What the cache has of a sequence's beginning."""

    block_ids: list[int]
    """Full blocks."""

    num_tokens: int
    """In them and the donor."""

    donor: Donor | None = None
    """What begins with the tokens after them."""

    @property
    def num_partial_tokens(self) -> int:
        """Of those, what the donor gives."""
        return self.donor.num_tokens if self.donor is not None else 0

    def without_donor(self) -> "PrefixHit":
        return replace(self, num_tokens=self.num_tokens - self.num_partial_tokens, donor=None)


NO_HIT = PrefixHit([], 0)


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

    def __init__(
        self,
        pool: BlockPool,
        block_size: int,
        enable_prefix_caching: bool,
        enable_partial_hits: bool = True,
    ) -> None:
        self.pool = pool
        self.block_size = block_size
        self._enable_prefix_caching = enable_prefix_caching
        self._enable_partial_hits = enable_prefix_caching and enable_partial_hits
        # (donor, block that is to hold what it holds); donors are held
        self._copies: list[tuple[int, int]] = []
        self._roots: dict[tuple[bytes, str], BlockHash] = {}
        self._fresh: list[FreshBlock] | None = None

    @property
    def usage(self) -> float:
        """Share of the usable blocks that sequences hold, 0 to 1."""
        return 1.0 - self.pool.num_free / self.pool.num_usable

    def begin_step(self) -> None:
        """Blocks of the steps before may be copied from now on."""
        self.pool.settle()

    def lookup(self, seq: BlockHolder) -> PrefixHit:
        """The longest cached prefix, always leaving a token to compute. Holds nothing."""
        block_ids = self.lookup_prefix(seq)
        start = len(block_ids) * self.block_size
        if not self._enable_partial_hits:
            return PrefixHit(block_ids, start)
        end = min(start + self.block_size, len(seq.token_ids) - 1)
        parent = self._parent(seq, len(block_ids))
        donor = self.pool.find_donor(parent, tuple(seq.token_ids[start:end]))
        return PrefixHit(block_ids, start + (donor.num_tokens if donor else 0), donor)

    def lookup_prefix(self, seq: BlockHolder) -> list[int]:
        """The full blocks of it alone."""
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

    def start(self, seq: BlockHolder, hit: PrefixHit, num_new_tokens: int) -> bool:
        """Give a sequence that holds nothing its cached prefix and room for `num_new_tokens` more.

        False, and nothing changed, if there are too few free blocks.
        """
        assert not seq.block_ids, f"sequence holds {len(seq.block_ids)} blocks already"
        donor_ids = [hit.donor.block_id] if hit.donor is not None else []
        is_taken_over = hit.donor is not None and self.pool.can_append(hit.donor)
        kept_ids = hit.block_ids + donor_ids if is_taken_over else hit.block_ids
        needed = self._num_blocks(hit.num_tokens + num_new_tokens) - len(kept_ids)
        held_ids = hit.block_ids + donor_ids
        if needed > self.pool.num_free - self.pool.num_idle(held_ids):
            return False
        self.pool.hold(held_ids)
        seq.block_ids = kept_ids + self.pool.allocate(needed)
        if hit.donor is not None and not is_taken_over:
            self._copies.append((hit.donor.block_id, seq.block_ids[len(hit.block_ids)]))
        seq.num_registered_blocks = len(hit.block_ids)
        seq.num_computed_tokens = hit.num_tokens
        self._register_full(seq, hit.num_tokens + num_new_tokens)
        return True

    def take_copies(self) -> tuple[tuple[int, int], ...]:
        """(source, target) of blocks to be copied before this step, in order.

        Sources are held until `end_copies`: a tier's thread could write to a free block at once.
        """
        copies, self._copies = tuple(self._copies), []
        return copies

    def end_copies(self, copies: Sequence[tuple[int, int]]) -> None:
        """The step that they came with has run, or failed."""
        for source, _ in copies:
            self.pool.release([source])

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

    def free(self, seq: BlockHolder, is_sound: bool = True) -> None:
        """Take all blocks back; what is in them stays findable until it is evicted.

        Of one that is not sound, what it has computed in its last block is forgotten.
        """
        if is_sound:
            self._register_partial(seq)
        self.pool.release(seq.block_ids)
        seq.block_ids = []
        seq.num_registered_blocks = 0

    def register_restored(self, seq: BlockHolder, index: int, block_id: int) -> None:
        """Make findable what a tier has brought of a sequence's block `index`."""
        self.pool.register(block_id, seq.block_hashes[index], self._content(seq, index))

    def register_received_tail(self, seq: BlockHolder) -> None:
        """Make findable what the partial last block of a prompt begins with, computed elsewhere."""
        index, num_tokens = divmod(len(seq.token_ids), self.block_size)
        if self._enable_partial_hits and num_tokens:
            self._extend_hashes(seq)
            self.pool.register_partial(seq.block_ids[index], self._content(seq, index))

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
            block_id, key = seq.block_ids[i], seq.block_hashes[i]
            is_fresh = self.pool.register(block_id, key, self._content(seq, i))
            if is_fresh and self._fresh is not None:
                parent = seq.block_hashes[i - 1] if i else None
                self._fresh.append(FreshBlock(block_id, key, parent, seq.namespace, seq.cache_salt))
        seq.num_registered_blocks = num_full

    def _register_partial(self, seq: BlockHolder) -> None:
        """Of a sequence that ends or is preempted."""
        index, num_tokens = divmod(seq.num_computed_tokens, self.block_size)
        if not self._enable_partial_hits or not seq.block_ids or not num_tokens:
            return
        self._extend_hashes(seq)
        content = self._content(seq, index)
        content = content._replace(token_ids=content.token_ids[:num_tokens])
        self.pool.register_partial(seq.block_ids[index], content)

    def _content(self, seq: BlockHolder, index: int) -> BlockContent:
        """What block `index` holds when all of its tokens are computed."""
        start = index * self.block_size
        token_ids = tuple(seq.token_ids[start : start + self.block_size])
        return BlockContent(self._parent(seq, index), token_ids, is_first=index == 0)

    def _parent(self, seq: BlockHolder, index: int) -> BlockHash:
        return seq.block_hashes[index - 1] if index else self._root(seq)

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
