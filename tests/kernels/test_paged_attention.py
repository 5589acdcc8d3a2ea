"""Paged attention against the torch reference, at every instruction set."""

from dataclasses import replace

import pytest
import torch

from rtp_serve.ops import reference
from tests.kernels.batches import Heads, PagedBatch, make_batch, make_tokens, with_strided_query
from tests.kernels.levels import DTYPES, ISAS, assert_near, bits, using

pytestmark = [pytest.mark.parametrize("isa", ISAS), pytest.mark.parametrize("dtype", DTYPES)]

# (keys, queries): a first token, decode rows around tile (64) and partition (256) bounds, whole
# prompts, later chunks, a sequence without queries in this step.
RAGGED = [(1, 1), (64, 1), (65, 1), (257, 1), (5, 5), (130, 130), (600, 77), (9, 0), (256, 256)]


def ragged_batch(heads: Heads, dtype: torch.dtype, window: int = 0) -> PagedBatch:
    sequences = [
        (make_tokens(heads, length, dtype, seed=seed), count)
        for seed, (length, count) in enumerate(RAGGED)
    ]
    return make_batch(heads, sequences, window)


def assert_agrees(batch: PagedBatch, isa: str) -> None:
    with using(isa):
        assert_near(batch.attend(), batch.attend(reference), scale=2)


@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(2, 2), (9, 3), (8, 1)])
def test_ragged_batches_agree(
    isa: str, dtype: torch.dtype, num_heads: int, num_kv_heads: int, head_dim: int
):
    heads = Heads(num_heads, num_kv_heads, head_dim)
    assert_agrees(with_strided_query(ragged_batch(heads, dtype)), isa)


@pytest.mark.parametrize("head_dim", [2, 8, 20, 80, 256])
def test_any_even_head_agrees(isa: str, dtype: torch.dtype, head_dim: int):
    heads = Heads(4, 2, head_dim)
    sequences = [(make_tokens(heads, 150, dtype), 1), (make_tokens(heads, 70, dtype, 1), 40)]
    assert_agrees(make_batch(heads, sequences), isa)


@pytest.mark.parametrize("window", [1, 64, 101, 10_000])
def test_a_window_hides_older_keys(isa: str, dtype: torch.dtype, window: int):
    assert_agrees(ragged_batch(Heads(), dtype, window), isa)


def test_a_hundred_query_heads_may_share_one_key_head(isa: str, dtype: torch.dtype):
    heads = Heads(num_heads=100, num_kv_heads=1, head_dim=16)
    assert_agrees(make_batch(heads, [(make_tokens(heads, 70, dtype), 3)]), isa)


@pytest.mark.parametrize("window", [0, 5, 70])
def test_trees_of_tokens_see_their_ancestors(isa: str, dtype: torch.dtype, window: int):
    """Beside a decode row and a prompt that take no part in it."""
    heads = Heads()
    tokens = [make_tokens(heads, length, dtype, seed) for seed, length in enumerate((150, 90, 99))]
    batch = make_batch(heads, [(tokens[0], 64), (tokens[1], 1), (tokens[2], 99)], window)
    mask = torch.zeros(64 + 1 + 99, dtype=torch.int64)
    mask[0] = 1
    for token in range(1, 64):
        parent = int(torch.randint(token, ()))
        own = 1 << token if token < 63 else -(1 << 63)
        mask[token] = int(mask[parent]) | own
    assert_agrees(replace(batch, ancestor_mask=mask), isa)


def test_rows_beyond_the_last_sequence_are_zero(isa: str, dtype: torch.dtype):
    heads = Heads()
    batch = make_batch(heads, [(make_tokens(heads, 20, dtype), 2)])
    query = torch.cat((batch.query, torch.full_like(batch.query, float("nan"))))
    with using(isa):
        padded = replace(batch, query=query).attend()
        assert torch.equal(bits(padded[:2]), bits(batch.attend()))
    assert not padded[2:].any()


def test_an_empty_batch_gives_an_empty_result(isa: str, dtype: torch.dtype):
    batch = make_batch(Heads(), [])
    none = torch.empty(0, 6, 64, dtype=dtype)
    cache = batch.key_cache.to(dtype)
    with using(isa):
        out = replace(batch, query=none, key_cache=cache, value_cache=cache).attend()
    assert out.shape == (0, 6, 64)


def test_large_scores_do_not_overflow(isa: str, dtype: torch.dtype):
    heads = Heads(head_dim=128)
    tokens = make_tokens(heads, 300, dtype)
    sharp = replace(tokens, query=tokens.query * 1000)
    batch = make_batch(heads, [(sharp, 30)])
    with using(isa):
        torch.testing.assert_close(batch.attend(), batch.attend(reference), rtol=0.02, atol=0.01)


def test_a_nan_query_spoils_its_own_row_alone(isa: str, dtype: torch.dtype):
    heads = Heads()
    batch = make_batch(heads, [(make_tokens(heads, 40, dtype), 10)])
    query = batch.query.clone()
    query[4, 3] = float("nan")
    with using(isa):
        clean, spoilt = batch.attend(), replace(batch, query=query).attend()
    assert spoilt[4, 3].isnan().all()
    spoilt[4, 3] = clean[4, 3]
    assert torch.equal(bits(spoilt), bits(clean))
