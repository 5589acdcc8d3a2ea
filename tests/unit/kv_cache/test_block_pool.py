import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rtp_serve.kv_cache.block import BlockContent, BlockHash, chain_hash, root_hash
from rtp_serve.kv_cache.block_pool import BlockPool


def make_chain(length: int, salt: str = "") -> list[BlockHash]:
    hashes: list[BlockHash] = []
    parent = root_hash(b"test", salt)
    for i in range(length):
        parent = chain_hash(parent, [i] * 4)
        hashes.append(parent)
    return hashes


def register_chain(pool: BlockPool, block_ids: list[int], hashes: list[BlockHash]) -> None:
    for i, block_id in enumerate(block_ids):
        pool.register(block_id, hashes[i], make_content(hashes, i))


def make_content(hashes: list[BlockHash], index: int, salt: str = "") -> BlockContent:
    """Of `make_chain`'s block `index`."""
    parent = hashes[index - 1] if index else root_hash(b"test", salt)
    return BlockContent(parent, (index,) * 4, index == 0)


def test_blocks_are_handed_out_in_order_and_the_null_block_never():
    pool = BlockPool(5)
    assert pool.allocate(4) == [1, 2, 3, 4]
    assert pool.num_free == 0


def test_a_cached_chain_is_evicted_from_its_leaf():
    pool = BlockPool(5)
    hashes = make_chain(4)
    block_ids = pool.allocate(4)
    register_chain(pool, block_ids, hashes)
    pool.release(block_ids)
    assert pool.allocate(2) == [4, 3]
    assert pool.lookup(hashes) == [1, 2]
    pool.check_invariants()


def test_blocks_without_content_are_reused_before_cached_ones():
    pool = BlockPool(4)
    cached, plain = pool.allocate(1), pool.allocate(2)
    register_chain(pool, cached, make_chain(1))
    pool.release(cached)
    pool.release(plain)
    assert set(pool.allocate(2)) == set(plain)
    assert pool.lookup(make_chain(1)) == cached


def test_a_hit_revives_a_cached_block_and_counts_its_holders():
    pool = BlockPool(4)
    hashes = make_chain(2)
    block_ids = pool.allocate(2)
    register_chain(pool, block_ids, hashes)
    pool.release(block_ids)
    found = pool.lookup(hashes)
    assert found == block_ids
    assert pool.num_idle(found) == 2
    pool.hold(found)
    pool.hold(found)
    assert pool.num_free == 1
    pool.check_holders({1: 2, 2: 2})


def test_equal_content_is_registered_once():
    pool = BlockPool(4)
    first, second = pool.allocate(2)
    register_chain(pool, [first], make_chain(1))
    register_chain(pool, [second], make_chain(1))
    assert pool.lookup(make_chain(1)) == [first]
    assert pool.num_cached == 1
    pool.check_invariants()


def test_a_parent_outlives_its_child_when_two_sequences_shared_it():
    """The second sequence's child hangs on the first one's copy of the parent."""
    pool = BlockPool(6)
    hashes = make_chain(2)
    (first,) = pool.allocate(1)
    register_chain(pool, [first], hashes[:1])
    second = pool.allocate(2)
    register_chain(pool, second, hashes)
    pool.release([first])
    pool.release(second)
    taken = pool.allocate(3)
    assert first not in taken
    pool.check_invariants()
    assert pool.lookup(hashes)[:1] == [first]


def test_evicting_a_parent_whose_children_are_held_forgets_the_children():
    pool = BlockPool(4)
    hashes = make_chain(2)
    (first,) = pool.allocate(1)
    register_chain(pool, [first], hashes[:1])
    second = pool.allocate(2)
    register_chain(pool, second, hashes)
    pool.release([first])
    assert pool.allocate(1) == [first]
    assert pool.lookup(hashes) == []
    assert pool.num_cached == 0
    pool.check_invariants()


def test_a_salt_separates_equal_tokens():
    assert make_chain(1, "a") != make_chain(1, "b")


def test_any_string_is_a_salt():
    """JSON can bring a lone surrogate, which UTF-8 proper has not."""
    assert make_chain(1, "\ud800") != make_chain(1, "\ud801")


def test_hash_input_is_framed():
    parent = root_hash(b"test", "")
    assert chain_hash(parent, [1], b"\x02\x00\x00\x00") != chain_hash(parent, [1, 2])
    assert root_hash(b"ab", "c") != root_hash(b"a", "bc")


def test_releasing_a_block_nobody_holds_is_caught():
    pool = BlockPool(3)
    block_ids = pool.allocate(1)
    pool.release(block_ids)
    with pytest.raises(AssertionError, match="nobody holds it"):
        pool.release(block_ids)


class PoolMachine(RuleBasedStateMachine):
    """Random sequences over a small alphabet of prompts, against a pool recomputed each time."""

    @initialize(num_blocks=st.integers(3, 9))
    def start(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks)
        self.chains = [make_chain(4, salt) for salt in ("a", "b")]
        self.held: list[tuple[int, list[int]]] = []

    @rule(chain=st.integers(0, 1), length=st.integers(1, 4))
    def start_sequence(self, chain: int, length: int) -> None:
        cached = self.pool.lookup(self.chains[chain][:length])
        needed = length - len(cached)
        if needed > self.pool.num_free - self.pool.num_idle(cached):
            return
        self.pool.hold(cached)
        block_ids = cached + self.pool.allocate(needed)
        self.held.append((chain, block_ids))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def register(self, data: st.DataObject) -> None:
        chain, block_ids = data.draw(st.sampled_from(self.held))
        register_chain(self.pool, block_ids, self.chains[chain])

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        _, block_ids = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.pool.release(block_ids)

    @rule()
    def clear(self) -> None:
        self.pool.clear_cache()
        assert self.pool.num_cached == 0

    @invariant()
    def state_is_consistent(self) -> None:
        self.pool.check_invariants()
        holders: dict[int, int] = {}
        for _, block_ids in self.held:
            for block_id in block_ids:
                holders[block_id] = holders.get(block_id, 0) + 1
        self.pool.check_holders(holders)


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
