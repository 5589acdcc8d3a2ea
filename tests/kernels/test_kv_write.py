"""Keys and values go to their slots and nowhere else."""

import pytest
import torch
from torch import Tensor

from rtp_serve.ops import compiled, kv_layout, reference
from tests.kernels.levels import DTYPES, ISAS, bits, random, using

BLOCK_SIZE = 16

pytestmark = [pytest.mark.parametrize("isa", ISAS), pytest.mark.parametrize("dtype", DTYPES)]


def assert_written(key: Tensor, value: Tensor, slots: Tensor, num_blocks: int) -> None:
    """As by the reference, beside slots that were NaN before."""
    shape = (num_blocks, key.shape[1], BLOCK_SIZE, key.shape[2])
    caches = [torch.full(shape, float("nan"), dtype=key.dtype) for _ in range(4)]
    compiled.write_kv(key, value, *caches[:2], slots)
    reference.write_kv(key, value, *caches[2:], slots)
    assert torch.equal(bits(kv_layout.key_rows(caches[0])), bits(caches[2]))
    assert torch.equal(bits(kv_layout.value_rows(caches[1])), bits(caches[3]))


@pytest.mark.parametrize(("num_heads", "head_dim"), [(3, 64), (1, 6), (8, 128), (2, 20), (1, 80)])
def test_tokens_land_in_their_slots(isa: str, dtype: torch.dtype, num_heads: int, head_dim: int):
    fused = random(40, 2 * num_heads + 1, head_dim, dtype=dtype)
    key, value = fused[:, 1 : num_heads + 1], fused[:, num_heads + 1 :]
    slots = torch.randperm(9 * BLOCK_SIZE)[:40]
    slots[::7] = -1
    with using(isa):
        assert_written(key, value, slots, num_blocks=9)


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("start", [0, 1, 15, 16])
@pytest.mark.parametrize("head_dim", [64, 20])
def test_chunks_fill_blocks_from_any_slot_on(
    isa: str, dtype: torch.dtype, num_threads: int, start: int, head_dim: int
):
    """Whole blocks are turned at once, whatever lies before and behind them, on any thread."""
    blocks = torch.tensor([7, 2, 3, 9, 1, 5])
    positions = torch.arange(start, start + 77)
    slots = blocks[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    key = random(77, 16, head_dim, dtype=dtype)
    value = random(77, 16, head_dim, dtype=dtype, seed=1)
    with using(isa, num_threads):
        assert_written(key, value, slots, num_blocks=10)


def test_a_block_with_a_token_left_out_keeps_what_was_there(isa: str, dtype: torch.dtype):
    slots = torch.arange(16, 32)
    slots[9] = -1
    with using(isa):
        assert_written(random(16, 2, 32, dtype=dtype), random(16, 2, 32, dtype=dtype), slots, 3)


def test_no_tokens_write_nothing(isa: str, dtype: torch.dtype):
    cache = torch.zeros(4, 2, 16, 64, dtype=dtype)
    none = torch.empty(0, 2, 64, dtype=dtype)
    with using(isa):
        compiled.write_kv(none, none, cache, cache, torch.empty(0, dtype=torch.int64))
    assert not cache.any()
