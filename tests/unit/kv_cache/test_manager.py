"""Blocks of a few sequences, without an engine around them."""

from dataclasses import dataclass, field

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_cache.block_pool import BlockPool
from rtp_serve.kv_cache.manager import KVCacheManager


@dataclass
class Holder:
    token_ids: list[int]
    namespace: bytes = b"test"
    cache_salt: str = ""
    block_ids: list[int] = field(default_factory=list)
    block_hashes: list[BlockHash] = field(default_factory=list)
    num_registered_blocks: int = 0
    num_computed_tokens: int = 0


def compute(cache: KVCacheManager, seq: Holder) -> None:
    """All of its tokens in one step, and give the blocks back."""
    cache.begin_step()
    hit = cache.lookup(seq)
    assert cache.start(seq, hit, len(seq.token_ids) - hit.num_tokens)
    cache.end_copies(cache.take_copies())
    seq.num_computed_tokens = len(seq.token_ids)
    cache.free(seq)


def test_what_is_to_be_copied_is_given_to_nobody_before_the_step_has_run():
    """A tier's thread could write to it at once."""
    pool = BlockPool(4)
    cache = KVCacheManager(pool, 4, enable_prefix_caching=True)
    compute(cache, Holder([1, 2, 3]))
    seq = Holder([1, 2, 9])
    cache.begin_step()
    hit = cache.lookup(seq)
    assert (hit.num_tokens, hit.num_partial_tokens) == (2, 2)
    assert cache.start(seq, hit, 1)
    ((source, target),) = copies = cache.take_copies()
    assert seq.block_ids == [target]
    assert pool.num_free == 1
    cache.end_copies(copies)
    pool.check_holders({target: 1})
    assert cache.take_copies() == ()
    assert source in pool.allocate(2)


def test_too_few_blocks_for_a_copy_change_nothing():
    pool = BlockPool(2)
    cache = KVCacheManager(pool, 4, enable_prefix_caching=True)
    compute(cache, Holder([1, 2, 3]))
    seq = Holder([1, 2, 9])
    cache.begin_step()
    hit = cache.lookup(seq)
    assert not cache.start(seq, hit, 1)
    assert (seq.block_ids, cache.take_copies(), pool.num_free) == ([], (), 1)
    without = hit.without_donor()
    assert (without.num_tokens, without.num_partial_tokens) == (0, 0)
    assert cache.start(seq, without, 3)


def test_a_block_that_is_taken_over_needs_no_other():
    pool = BlockPool(2)
    cache = KVCacheManager(pool, 4, enable_prefix_caching=True)
    compute(cache, Holder([1, 2, 3]))
    seq = Holder([1, 2, 3, 9])
    cache.begin_step()
    assert cache.start(seq, cache.lookup(seq), 1)
    assert cache.take_copies() == ()
    assert seq.num_computed_tokens == 3
    pool.check_invariants()


def test_a_switch_turns_the_beginnings_of_blocks_off():
    cache = KVCacheManager(BlockPool(8), 4, enable_prefix_caching=True, enable_partial_hits=False)
    compute(cache, Holder([1, 2, 3, 4, 5, 6]))
    cache.begin_step()
    hit = cache.lookup(Holder([1, 2, 3, 4, 5, 6, 7]))
    assert (hit.num_tokens, hit.donor) == (4, None)
