from collections import OrderedDict
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.simulation.block_cache import BlockCache
from rtp_serve.simulation.decode_pool import DecodePool
from rtp_serve.simulation.events import Events


def chain(name: str, length: int) -> tuple[BlockHash, ...]:
    return tuple(BlockHash(f"{name}{i}".encode()) for i in range(length))


def test_a_full_cache_gives_up_the_end_of_what_was_used_longest_ago():
    cache = BlockCache(5)
    cache.store(chain("a", 3))
    cache.store(chain("b", 3))
    assert cache.use(chain("a", 3)) == 2
    assert cache.use(chain("b", 3)) == 3


def test_a_block_that_came_and_went_is_no_change():
    cache = BlockCache(2)
    cache.store(chain("a", 2))
    assert set(cache.changes()[0]) == set(chain("a", 2))
    cache.store(chain("b", 2))
    cache.store(chain("a", 2))
    assert cache.changes() == ((), ())


@given(
    capacity=st.integers(1, 12),
    chains=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 8)), max_size=30),
)
@settings(deadline=None)
def test_changes_add_up_to_what_is_there(capacity: int, chains: list[tuple[str, int]]):
    cache, followed = BlockCache(capacity), set[BlockHash]()
    for name, length in chains:
        cache.use(chain(name, length))
        cache.store(chain(name, length))
        added, removed = cache.changes()
        followed = followed - set(removed) | set(added)
        everything = {key for each in "abc" for key in chain(each, 8)}
        assert followed == {key for key in everything if key in cache}
        assert len(cache) <= capacity


@pytest.mark.parametrize("seed", range(5))
def test_a_cache_has_what_one_that_moves_each_block_would_have(seed: int):
    rng, cache, capacity = Random(seed), BlockCache(40), 40
    blocks: OrderedDict[BlockHash, None] = OrderedDict()  # the next to go comes first
    for _ in range(600):  # some hundred times as many blocks as are there
        prompt = chain(rng.choice("abcdefg"), rng.randrange(1, 20))
        there = next((i for i, key in enumerate(prompt) if key not in blocks), len(prompt))
        assert cache.use(prompt) == there
        for key in reversed(prompt[:there]):
            blocks.move_to_end(key)
        if rng.random() < 0.3:  # sequences hold some of the memory meanwhile
            capacity = cache.capacity = rng.randrange(10, 40)
            cache.shrink(capacity)
            while len(blocks) > capacity:
                blocks.popitem(last=False)
        cache.store(prompt)
        for key in reversed(prompt):
            blocks[key] = None
            blocks.move_to_end(key)
        while len(blocks) > capacity:
            blocks.popitem(last=False)
        assert {key for name in "abcdefg" for key in chain(name, 20) if key in cache} == set(blocks)


def test_of_equal_times_the_first_planned_is_called_first_or_whose_turn_was_taken():
    events, called = Events(), list[str]()
    turn = events.turn()
    events.at(2.0, lambda: called.append("planned"))
    events.at(1.0, lambda: events.at(2.0, lambda: called.append("last")))
    events.at(2.0, lambda: called.append("by its turn"), turn)
    events.run()
    assert called == ["by its turn", "planned", "last"]
    assert events.now == 2.0


def test_sequences_move_together_and_end_when_they_have_what_they_want():
    pool = DecodePool()
    pool.advance(0.0)
    pool.add("1", num_tokens=10, num_context_tokens=100)
    pool.set_rate(5.0)
    pool.advance(1.0)
    pool.add("2", num_tokens=10, num_context_tokens=50)
    assert pool.num_kv_tokens == 155
    assert pool.next_end_s() == 2.0
    pool.advance(2.0)
    assert list(pool.pop_ended()) == ["1"]
    assert pool.num_kv_tokens == 55
    pool.set_rate(2.0)
    assert pool.next_end_s() == 4.5
    pool.advance(4.5)
    assert list(pool.pop_ended()) == ["2"]
    assert (len(pool), round(pool.num_kv_tokens, 9)) == (0, 0)
    assert pool.next_end_s() is None
