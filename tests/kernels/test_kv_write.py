"""Keys and values go to their slots and nowhere else."""

import pytest
import torch

from rtp_serve.ops import compiled, reference
from tests.kernels.levels import DTYPES, bits, random


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_heads", "block_size", "head_dim"), [(3, 16, 64), (1, 4, 6), (8, 32, 128)]
)
def test_tokens_land_in_their_slots(
    dtype: torch.dtype, num_heads: int, block_size: int, head_dim: int
):
    num_blocks, num_tokens = 9, 40
    fused = random(num_tokens, 2 * num_heads + 1, head_dim, dtype=dtype)
    key, value = fused[:, 1 : num_heads + 1], fused[:, num_heads + 1 :]
    slots = torch.randperm(num_blocks * block_size)[:num_tokens]
    if len(slots) < num_tokens:
        slots = torch.cat((slots, torch.full((num_tokens - len(slots),), -1)))
    slots[::7] = -1
    shape = (num_blocks, num_heads, block_size, head_dim)
    caches = [torch.full(shape, float("nan"), dtype=dtype) for _ in range(4)]
    compiled.write_kv(key, value, *caches[:2], slots)
    reference.write_kv(key, value, *caches[2:], slots)
    assert torch.equal(bits(caches[0]), bits(caches[2]))
    assert torch.equal(bits(caches[1]), bits(caches[3]))


def test_a_large_batch_is_written_by_two_threads_like_by_one():
    key = random(600, 8, 64, dtype=torch.bfloat16)
    value = random(600, 8, 64, dtype=torch.bfloat16, seed=1)
    slots = torch.randperm(640)[:600]
    cache = torch.zeros(2, 40, 8, 16, 64, dtype=torch.bfloat16)
    compiled.write_kv(key, value, cache[0], cache[1], slots)
    rows = cache.transpose(2, 3).flatten(1, 2)[:, slots]
    assert torch.equal(rows[0], key)
    assert torch.equal(rows[1], value)


def test_no_tokens_write_nothing():
    cache = torch.zeros(4, 2, 16, 64)
    none = torch.empty(0, 2, 64)
    compiled.write_kv(none, none, cache, cache, torch.empty(0, dtype=torch.int64))
    assert not cache.any()
