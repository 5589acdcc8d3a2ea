from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.eviction.duel import Duel
from rtp_serve.kv_store.eviction.ghost_list import DIGEST_BYTES
from rtp_serve.kv_store.eviction.lru import LRU
from rtp_serve.kv_store.eviction.s3_fifo import S3FIFO
from rtp_serve.kv_store.eviction.score import Score
from tests.unit.kv_store.blocks import make_chain
from tests.unit.kv_store.eviction.oracles import NaiveLRU


def play(duel: Duel, residents: set[BlockHash], keys: Iterable[BlockHash], capacity: int) -> int:
    """Want blocks one after the other, each without a parent; how many were there."""
    num_hits = 0
    for key in keys:
        if key in residents:
            duel.hit(key)
            num_hits += 1
            continue
        if len(residents) == capacity:
            victim = duel.victim(lambda _: True)
            assert victim is not None
            residents.remove(victim)
        duel.insert(key, None)
        residents.add(key)
    duel.check_invariants()
    return num_hits


def hot_among_cold(num_rounds: int) -> list[BlockHash]:
    """Some are wanted again and again, after more than the cache holds was wanted once."""
    hot, cold = make_chain(40, "hot"), make_chain(num_rounds * 100, "cold")
    rounds = ([*hot, *hot, *hot, *cold[i * 100 : i * 100 + 100]] for i in range(num_rounds))
    return [key for each in rounds for key in each]


def moving_on(num_steps: int) -> list[BlockHash]:
    """Each is wanted again once, a while later, and never after."""
    keys = make_chain(num_steps, "moving")
    return [key for i in range(30, num_steps) for key in (keys[i], keys[i - 30])]


def test_it_goes_over_to_what_does_better_and_back():
    duel, residents = Duel(100, (LRU, S3FIFO)), set[BlockHash]()
    play(duel, residents, moving_on(2000), 100)
    assert duel.player == 0
    play(duel, residents, hot_among_cold(60), 100)
    assert duel.player == 1
    play(duel, residents, moving_on(12000), 100)
    assert duel.player == 0


def test_sampled_ghosts_see_the_same():
    duel, residents = Duel(100, (LRU, S3FIFO), ghost_blocks=50), set[BlockHash]()
    play(duel, residents, hot_among_cold(120), 100)
    assert duel.player == 1
    assert all(len(ghost) <= 50 for ghost in duel._ghosts)
    assert all(len(key) == DIGEST_BYTES for ghost in duel._ghosts for key in ghost._keys)


def test_policies_that_do_equally_well_are_not_exchanged():
    duel, residents = Duel(100, (LRU, LRU)), set[BlockHash]()
    play(duel, residents, hot_among_cold(40), 100)
    assert duel.player == 0
    assert duel._handover is None


def test_a_lead_that_may_be_an_accident_is_none():
    score = Score(2)
    for _ in range(20):
        score.add([True, False])
        score.add([False, True])
    score.add([False, True])
    assert score.better_than(0) == 0
    for _ in range(50):
        score.add([False, True])
    assert score.better_than(0) == 1
    assert score.better_than(1) == 1


@given(
    switch_at=st.integers(0, 60),
    steps=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60)), max_size=150),
)
def test_a_handover_keeps_the_order_of_last_use(switch_at: int, steps: list):
    """From LRU to LRU nothing changes, whatever happens meanwhile."""
    keys = make_chain(61)
    duel, oracle = Duel(200, (LRU, LRU)), NaiveLRU(200)
    for key in keys[:60]:
        duel.insert(key, None)
        oracle.insert(key, None)
    for number, (action, place) in enumerate(steps):
        if number == switch_at:
            duel._start_handover(1)
        key = keys[place]
        if action == 0:
            assert duel.victim(lambda _: True) == oracle.victim(lambda _: True)
        elif key not in oracle.parents:
            duel.insert(key, None)
            oracle.insert(key, None)
        elif action == 1:
            duel.remove(key)
            oracle.remove(key)
        else:
            duel.hit(key)
            oracle.hit(key)
        duel.check_invariants()
    while oracle.order:
        assert duel.victim(lambda _: True) == oracle.victim(lambda _: True)
    assert duel.victim(lambda _: True) is None


def test_a_handover_takes_few_moves_at_a_time():
    duel, keys = Duel(1000, (LRU, LRU)), make_chain(500)
    for key in keys:
        duel.insert(key, None)
    duel._start_handover(1)
    for num_uses in range(1, 10):
        duel.hit(keys[-1])
        assert duel._handover is not None
        assert len(duel._handover.moved) == 8 * num_uses
