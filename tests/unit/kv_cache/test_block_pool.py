import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rtp_serve.kv_cache.block import BlockContent, BlockHash, chain_hash, root_hash
from rtp_serve.kv_cache.block_pool import BlockPool
from rtp_serve.kv_cache.donor_index import Donor


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


def make_content(hashes: list[BlockHash], index: int, num_tokens: int = 4) -> BlockContent:
    """Of `make_chain`'s block `index`, or its beginning."""
    parent = hashes[index - 1] if index else root_hash(b"test", hashes[0].hex())
    return BlockContent(parent, (index,) * num_tokens, index == 0)


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


def test_a_partial_block_goes_before_its_parent_and_after_blocks_without_content():
    pool = BlockPool(5)
    hashes = make_chain(2)
    block_ids = pool.allocate(3)
    register_chain(pool, block_ids[:1], hashes)
    pool.register_partial(block_ids[1], make_content(hashes, 1, 2))
    pool.release(block_ids)
    pool.check_invariants()
    assert pool.num_cached == 1
    assert pool.find_donor(hashes[0], (1, 1, 5)) == Donor(block_ids[1], 2)
    assert set(pool.allocate(2)) == {block_ids[2], 4}
    assert pool.allocate(1) == [block_ids[1]]
    assert pool.find_donor(hashes[0], (1, 1, 5)) is None
    assert pool.lookup(hashes) == block_ids[:1]
    pool.check_invariants()


def test_a_partial_block_without_its_parent_cannot_be_found():
    pool = BlockPool(4)
    hashes = make_chain(2)
    block_ids = pool.allocate(3)
    pool.register_partial(block_ids[1], make_content(hashes, 1, 2))
    assert pool.find_donor(hashes[0], (1, 1)) is None
    register_chain(pool, block_ids[:1], hashes)
    pool.register_partial(block_ids[1], make_content(hashes, 1, 2))
    pool.release(block_ids[:1])
    assert pool.allocate(1) == block_ids[:1], "nothing else is free"
    assert pool.find_donor(hashes[0], (1, 1)) is None
    pool.check_invariants()


def test_a_full_block_is_a_donor_from_the_next_step_on():
    pool = BlockPool(4)
    hashes = make_chain(1)
    block_ids = pool.allocate(1)
    register_chain(pool, block_ids, hashes)
    parent = make_content(hashes, 0).parent
    assert pool.find_donor(parent, (0, 0, 5)) is None
    pool.settle()
    donor = pool.find_donor(parent, (0, 0, 5))
    assert donor == Donor(block_ids[0], 2)
    pool.release(block_ids)
    assert not pool.can_append(donor), "it has more than these two"


def test_only_one_block_of_equal_beginning_is_kept():
    pool = BlockPool(4)
    hashes = make_chain(1)
    first, second, third = pool.allocate(3)
    pool.register_partial(first, make_content(hashes, 0, 3))
    pool.register_partial(second, make_content(hashes, 0, 2))
    pool.release([first])
    pool.release([second])
    pool.release([third])
    assert pool.allocate(2) == [third, second], "the longer one has what the shorter one had"
    donor = pool.find_donor(make_content(hashes, 0).parent, (0, 0, 0))
    assert donor == Donor(first, 3)
    assert pool.can_append(donor)
    pool.hold([first])
    assert not pool.can_append(donor), "somebody writes in it"


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
    @rule(data=st.data(), num_tokens=st.integers(0, 3))
    def finish(self, data: st.DataObject, num_tokens: int) -> None:
        chain, block_ids = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        if num_tokens:
            content = make_content(self.chains[chain], len(block_ids) - 1, num_tokens)
            self.pool.register_partial(block_ids[-1], content)
        self.pool.release(block_ids)

    @rule(chain=st.integers(0, 1), index=st.integers(0, 3), num_tokens=st.integers(1, 4))
    def take_over(self, chain: int, index: int, num_tokens: int) -> None:
        self.pool.settle()
        hashes = self.chains[chain]
        parents = self.pool.lookup(hashes[:index])
        content = make_content(hashes, index, num_tokens)
        donor = self.pool.find_donor(content.parent, content.token_ids)
        if donor is not None:
            assert len(parents) == index, "a donor can be found and its parent cannot"
            if self.pool.can_append(donor):
                block_ids = [*parents, donor.block_id]
                self.pool.hold(block_ids)
                self.held.append((chain, block_ids))

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
