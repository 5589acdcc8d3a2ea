"""Every part of a model is some rank's, and heads stay with their key/value heads."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtp_serve.config.model import ModelConfig
from rtp_serve.config.parallel import ParallelConfig
from rtp_serve.errors import ConfigError
from rtp_serve.parallel.partition import RankPart, partition, share


def parts_of(tp: int, **shape: int) -> tuple[RankPart, ...]:
    return partition(ModelConfig(**shape), ParallelConfig(tp=tp))


@given(size=st.integers(1, 5000), world_size=st.integers(1, 16), unit=st.sampled_from([1, 2, 32]))
def test_shares_are_in_order_near_equal_and_together_the_whole(
    size: int, world_size: int, unit: int
):
    spans = [share(size, rank, world_size, unit) for rank in range(world_size)]
    assert spans[0][0] == 0
    assert spans[-1][1] == size
    assert all(left[1] == right[0] for left, right in pairwise(spans))
    sizes = [end - begin for begin, end in spans]
    assert max(sizes) - min(sizes) <= 2 * unit
    if size >= world_size:
        assert min(sizes) > 0


@given(num_kv_heads=st.integers(1, 12), group=st.integers(1, 8), world_size=st.integers(1, 24))
def test_each_query_head_is_one_ranks_and_its_key_head_is_there(
    num_kv_heads: int, group: int, world_size: int
):
    shape = {"num_heads": num_kv_heads * group, "num_kv_heads": num_kv_heads}
    fits = world_size <= num_kv_heads or (
        world_size % num_kv_heads == 0 and world_size <= num_kv_heads * group
    )
    if not fits:
        with pytest.raises(ConfigError, match=f"{world_size} ranks"):
            parts_of(world_size, **shape)
        return
    parts = parts_of(world_size, **shape)
    heads = [head for part in parts for head in range(*part.heads)]
    assert heads == list(range(num_kv_heads * group))
    for part in parts:
        assert {head // group for head in range(*part.heads)} == set(range(*part.kv_heads))
        # what attention takes: the same number of query heads for each key/value head
        assert part.num_heads % part.num_kv_heads == 0


def test_a_key_head_is_held_by_several_ranks_where_there_are_more_ranks_than_key_heads():
    parts = parts_of(4, num_heads=8, num_kv_heads=2)
    assert [part.heads for part in parts] == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert [part.kv_heads for part in parts] == [(0, 1), (0, 1), (1, 2), (1, 2)]


def test_columns_are_shared_out_as_the_kernels_pack_them():
    parts = parts_of(2, num_heads=9, num_kv_heads=3, intermediate_size=1536, vocab_size=49152)
    assert [part.heads for part in parts] == [(0, 3), (3, 9)]
    assert [part.intermediate for part in parts] == [(0, 768), (768, 1536)]
    assert all(end % 32 == 0 for part in parts for end in (*part.intermediate, *part.vocab))


def test_what_cannot_be_shared_names_what_can():
    with pytest.raises(ConfigError, match=r"allowed: 1, 2, 3, 6, 9$"):
        parts_of(4, num_heads=9, num_kv_heads=3)
