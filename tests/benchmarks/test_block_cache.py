from itertools import product
from pathlib import Path

import pytest

from benchmarks.block_cache import BlockCache, best_hit_rate, hit_rate
from benchmarks.block_traces import BlockTrace, read_trace, trace_of
from rtp_serve.errors import ConfigError
from rtp_serve.kv_store.eviction.lru import LRU
from rtp_serve.kv_store.eviction.registry import POLICIES, make_policy
from rtp_serve.kv_store.index import BlockIndex
from rtp_serve.kv_store.reservation import Reservation
from tests.unit.kv_store.blocks import SLAB_BYTES, Marks, empty_records, requests_of


def make_trace() -> BlockTrace:
    """Conversations that go on, among requests that come once; one is longer than the cache."""
    requests = []
    for number in range(400):
        talk, turn = number * 7 % 11, number % 5
        requests.append(["system", *(f"{talk}.{number // 130}.{i}" for i in range(turn + 1))])
        requests.append([f"once {number} {i}" for i in range(number % 4)])
    requests.append([f"long {i}" for i in range(60)])
    requests.append(requests[0])
    return trace_of(iter(requests))


@pytest.mark.parametrize(("name", "capacity"), list(product(POLICIES, [12, 40])))
def test_the_index_finds_what_the_simulation_finds(name: str, capacity: int):
    trace = make_trace()
    cache = BlockCache(make_policy(name, capacity), capacity)
    policy = make_policy(name, capacity)
    index = BlockIndex(empty_records(capacity), SLAB_BYTES, 1, policy, Marks(), 0)
    for numbers in trace.chains:
        chain = [trace.keys[number] for number in numbers]
        lease = index.acquire(chain, "r", 0)
        num_found = len(lease.locations)
        index.release(lease.lease_id)
        answers = index.reserve(requests_of(chain, num_found), "w", 0)
        index.complete([each for each in answers if isinstance(each, Reservation)])
        assert cache.request(chain) == num_found
    assert set(cache._parents) == set(index.snapshot().keys)
    index.check_invariants()


def test_who_knows_the_future_is_not_beaten():
    trace = make_trace()
    for capacity in (1, 5, 12, 40):
        best = best_hit_rate(trace, capacity)
        assert all(
            hit_rate(trace, make_policy(each, capacity), capacity) <= best for each in POLICIES
        )


def test_belady_has_as_many_hits_as_the_best_of_all_choices():
    chains = [["a", "b"], ["c"], ["a", "b"], ["d"], ["c"], ["a"], ["d"], ["c"], ["a", "b"]]
    trace = trace_of(iter(chains))

    def most(request: int, kept: frozenset[int]) -> int:
        if request == len(trace.chains):
            return 0
        chain = trace.chains[request]
        num_found = next((i for i, each in enumerate(chain) if each not in kept), len(chain))
        had = kept | set(chain)
        blocks = sorted(had)
        choices = [
            frozenset(each for each, stays in zip(blocks, bits, strict=True) if stays)
            for bits in product([False, True], repeat=len(blocks))
        ]
        return num_found + max(most(request + 1, each) for each in choices if len(each) == 2)

    expected = most(0, frozenset({-1, -2}))
    assert best_hit_rate(trace, 2) * trace.num_wanted == expected


def test_a_cache_of_everything_misses_each_block_once():
    trace = make_trace()
    capacity = len(trace.keys)
    expected = 1 - capacity / trace.num_wanted
    assert hit_rate(trace, LRU(capacity), capacity) == pytest.approx(expected)
    assert best_hit_rate(trace, capacity) == pytest.approx(expected)


def test_a_trace_that_is_not_there_is_an_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="--traces"):
        read_trace(tmp_path, "mooncake")
