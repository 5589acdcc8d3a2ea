from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtp_serve.errors import ConfigError
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.eviction.arc import ARC
from rtp_serve.kv_store.eviction.duel import Duel
from rtp_serve.kv_store.eviction.lru import LRU
from rtp_serve.kv_store.eviction.registry import POLICIES, make_policy
from rtp_serve.kv_store.eviction.s3_fifo import S3FIFO
from tests.unit.kv_store.blocks import make_chain
from tests.unit.kv_store.eviction.oracles import NaiveARC, NaiveLRU, NaiveS3FIFO

PAIRS = [(LRU, NaiveLRU), (ARC, NaiveARC), (S3FIFO, NaiveS3FIFO)]
NUM_KEYS = 12
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["use", "use", "use", "victim", "remove"]),
        st.integers(0, NUM_KEYS - 1),
        st.sets(st.integers(0, NUM_KEYS - 1), max_size=3),
    ),
    max_size=80,
)
CHAIN = make_chain(NUM_KEYS)
PARENTS: list[BlockHash | None] = [CHAIN[(i - 1) // 2] if i else None for i in range(NUM_KEYS)]


@pytest.mark.parametrize(("policy_type", "oracle_type"), PAIRS)
@given(capacity=st.integers(1, 14), steps=STEPS)
def test_each_policy_chooses_as_its_plain_description_does(
    policy_type: Callable, oracle_type: Callable, capacity: int, steps: list
):
    """Blocks come without parents too, and leave while they have children."""
    policy, oracle = policy_type(capacity), oracle_type(capacity)
    for action, number, held in steps:
        key = CHAIN[number]
        if action == "victim" or (
            action == "use" and key not in oracle.parents and len(oracle.parents) >= capacity
        ):
            held_keys = {CHAIN[each] for each in held}
            expected = oracle.victim(lambda each, held=held_keys: each not in held)
            assert policy.victim(lambda each, held=held_keys: each not in held) == expected
        elif action == "use" and key in oracle.parents:
            policy.hit(key)
            oracle.hit(key)
        elif action == "use":
            policy.insert(key, PARENTS[number])
            oracle.insert(key, PARENTS[number])
        elif key in oracle.parents:
            policy.remove(key)
            oracle.remove(key)
        policy.check_invariants()
    if isinstance(policy, ARC):
        assert policy._target == oracle.target


@pytest.mark.parametrize("name", list(POLICIES))
@pytest.mark.parametrize("is_first_oldest", [True, False])
def test_a_long_chain_goes_from_its_end_and_no_block_is_asked_about_often(
    name: str, is_first_oldest: bool
):
    chain = make_chain(10_000)
    policy, left, num_asked = make_policy(name, len(chain)), len(chain), 0
    order = range(len(chain)) if is_first_oldest else reversed(range(len(chain)))
    for i in order:
        policy.insert(chain[i], chain[i - 1] if i else None)
    place = {key: i for i, key in enumerate(chain)}

    def is_evictable(key: BlockHash) -> bool:
        nonlocal num_asked
        num_asked += 1
        return place[key] == left - 1

    while left:
        assert policy.victim(is_evictable) == chain[left - 1]
        left -= 1
    assert policy.victim(is_evictable) is None
    assert num_asked == len(chain)


@pytest.mark.parametrize("name", list(POLICIES))
def test_what_is_held_stays_where_it_was(name: str):
    keys = make_chain(4)
    policy = make_policy(name, 4)
    for key in keys:
        policy.insert(key, None)
    assert policy.victim(lambda key: key == keys[2]) == keys[2]
    assert policy.victim(lambda _: False) is None
    assert [policy.victim(lambda _: True) for _ in range(4)] == [keys[0], keys[1], keys[3], None]


def test_what_is_read_once_pushes_out_nothing_that_is_used_again():
    for make in (ARC, S3FIFO):
        policy = make(20)
        hot, cold = make_chain(10, "hot"), make_chain(200, "cold")
        for key in hot:
            policy.insert(key, None)
            policy.hit(key)
            policy.hit(key)
        for i, key in enumerate(cold):
            policy.insert(key, None)
            if i >= 10:
                assert policy.victim(lambda _: True) in cold


def test_ghosts_take_as_many_as_the_capacity_at_most():
    for make in (ARC, S3FIFO):
        policy = make(8)
        for key in make_chain(100):
            policy.insert(key, None)
            policy.victim(lambda _: True)
            policy.check_invariants()


def test_an_unknown_name_is_an_error():
    with pytest.raises(ConfigError, match="eviction policy"):
        make_policy("lur", 1)
    assert isinstance(make_policy("duel", 1), Duel)
