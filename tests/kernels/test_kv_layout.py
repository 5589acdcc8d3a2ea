"""The device layout of the compiled kernels, and the way to the canonical one and back."""

from types import ModuleType

import pytest
import torch

from rtp_serve.ops import compiled, kv_layout, reference
from tests.kernels.levels import DTYPES, bits

NUM_LAYERS, NUM_BLOCKS, NUM_KV_HEADS, HEAD_DIM = 2, 5, 3, 6


def any_bits(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """All patterns, NaN with payloads among them."""
    integer = torch.int16 if dtype.itemsize == 2 else torch.int32
    limits = torch.iinfo(integer)
    return torch.randint(limits.min, limits.max, shape, dtype=integer).view(dtype)


def test_a_word_of_keys_is_one_tokens_and_a_word_of_values_one_dims():
    rows = torch.arange(16 * HEAD_DIM).view(16, HEAD_DIM).to(torch.bfloat16)
    keys, values = kv_layout.key_tiles(rows).flatten(), kv_layout.value_tiles(rows).flatten()
    for token in range(16):
        for dim in range(HEAD_DIM):
            assert keys[dim // 2 * 32 + token * 2 + dim % 2] == rows[token, dim]
            assert values[token // 2 * 2 * HEAD_DIM + dim * 2 + token % 2] == rows[token, dim]


def test_floats_are_words():
    rows = torch.arange(16 * HEAD_DIM).view(16, HEAD_DIM).float()
    assert torch.equal(kv_layout.key_tiles(rows).view(HEAD_DIM, 16), rows.T)
    assert torch.equal(kv_layout.value_tiles(rows), rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ops", [compiled, reference], ids=["compiled", "reference"])
def test_blocks_survive_the_way_into_a_cache_and_out(ops: ModuleType, dtype: torch.dtype):
    shape = (NUM_BLOCKS, NUM_LAYERS, 2, NUM_KV_HEADS, 16, HEAD_DIM)
    cache = any_bits(*shape, dtype=dtype)
    before = cache.clone()
    data = any_bits(3, NUM_LAYERS, 2, NUM_KV_HEADS, 16, HEAD_DIM, dtype=dtype)
    block_ids = torch.tensor([4, 0, 3])
    ops.scatter_kv(data, cache, block_ids)
    back = ops.gather_kv(cache, block_ids)
    assert back.is_contiguous()
    assert torch.equal(bits(back), bits(data))
    assert torch.equal(bits(cache[[1, 2]]), bits(before[[1, 2]]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_token_by_token_comes_out_in_plain_order(dtype: torch.dtype):
    cache = torch.zeros(NUM_BLOCKS, 1, 2, NUM_KV_HEADS, 16, HEAD_DIM, dtype=dtype)
    key, value = (any_bits(16, NUM_KV_HEADS, HEAD_DIM, dtype=dtype) for _ in range(2))
    for token in range(16):
        one = slice(token, token + 1)
        slot = torch.tensor([2 * 16 + token])
        compiled.write_kv(key[one], value[one], cache[:, 0, 0], cache[:, 0, 1], slot)
    data = compiled.gather_kv(cache, torch.tensor([2]))
    assert torch.equal(bits(data[0, 0, 0]), bits(key.transpose(0, 1)))
    assert torch.equal(bits(data[0, 0, 1]), bits(value.transpose(0, 1)))
