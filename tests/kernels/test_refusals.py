"""Wrong operands raise an error that names them; nothing is copied, converted or written."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rtp_kernels import _C
from rtp_serve.ops import compiled
from tests.kernels.batches import Heads, PagedBatch, make_batch, make_tokens
from tests.kernels.levels import random

BF16, FP32, FP16 = torch.bfloat16, torch.float32, torch.float16


def norm(x: Tensor | None = None, weight: Tensor | None = None) -> None:
    x = random(3, 8, dtype=BF16) if x is None else x
    compiled.rms_norm(x, random(8, dtype=BF16) if weight is None else weight, 1e-5)


def rotary(
    query: Tensor | None = None,
    positions: Tensor | None = None,
    cos_sin: Tensor | None = None,
    sections: tuple[int, ...] = (),
) -> None:
    compiled.rotary(
        random(3, 2, 8) if query is None else query,
        random(3, 1, 8),
        torch.tensor([0, 1, 2]) if positions is None else positions,
        torch.zeros(10, 8) if cos_sin is None else cos_sin,
        sections,
    )


def write(
    key: Tensor | None = None, key_cache: Tensor | None = None, slots: Tensor | None = None
) -> None:
    compiled.write_kv(
        random(3, 2, 8) if key is None else key,
        random(3, 2, 8),
        torch.zeros(5, 2, 16, 8) if key_cache is None else key_cache,
        torch.zeros(5, 2, 16, 8),
        torch.tensor([0, -1, 79]) if slots is None else slots,
    )


def batch() -> PagedBatch:
    heads = Heads(4, 2, 8)
    return make_batch(heads, [(make_tokens(heads, 40, FP32), 3), (make_tokens(heads, 20, FP32), 1)])


def attend(**changes: Tensor | int) -> Callable[[], Tensor]:
    return lambda: replace(batch(), **changes).attend()


TYPE_ERRORS = {
    "x must be bfloat16 or float32, got float16": lambda: norm(random(3, 8, dtype=FP16)),
    "weight must be bfloat16 like x, got float32": lambda: norm(weight=random(8)),
    "incompatible function arguments": lambda: _C.rms_norm(
        random(3, 8), torch.empty(3, 8, device="meta"), random(8), 1e-5
    ),
    "positions must be int64, got int32": lambda: rotary(positions=torch.arange(3).int()),
    "cos_sin must be float32": lambda: rotary(cos_sin=torch.zeros(10, 8, dtype=BF16)),
    "key must be float32 like key_cache": lambda: write(key=random(3, 2, 8, dtype=BF16)),
    "slots must be int64": lambda: write(slots=torch.arange(3).int()),
    "key_cache must be float32 like query": attend(key_cache=batch().key_cache.bfloat16()),
    "block_tables must be int32": attend(block_tables=batch().block_tables.long()),
    "seq_lens must be int32": attend(seq_lens=batch().seq_lens.long()),
    "ancestor_mask must be int64": attend(ancestor_mask=torch.ones(4, dtype=torch.bool)),
}

VALUE_ERRORS = {
    r"x must have shape \[\*, \*\], got \[2, 2, 2, 2\]": lambda: norm(random(2, 2, 2, 2)),
    "x must be contiguous from dimension 1": lambda: norm(random(8, 3, dtype=BF16).T),
    r"weight must have shape \[8\], got \[7\]": lambda: norm(weight=random(7, dtype=BF16)),
    "even number of columns": lambda: compiled.silu_and_mul(random(2, 7)),
    "query must be contiguous": lambda: rotary(query=random(3, 8, 2).transpose(1, 2)),
    "positions must be from 0 to 9, got 10": lambda: rotary(positions=torch.tensor([0, 10, 1])),
    "positions must be from 0 to 9, got -1": lambda: rotary(positions=torch.tensor([0, 1, -1])),
    r"cos_sin must have shape \[\*, 8\]": lambda: rotary(cos_sin=torch.zeros(10, 6)),
    "add up to 4": lambda: rotary(positions=torch.zeros(3, 3).long(), sections=(1, 1, 1)),
    r"slots\[2\] must be from -1 to 79, got 80": lambda: write(slots=torch.tensor([0, 1, 80])),
    r"slots\[0\] must be from -1 to 79, got -2": lambda: write(slots=torch.tensor([-2, 1, 2])),
    r"key must have shape \[\*, 2, 8\], got \[3, 1, 8\]": lambda: write(key=random(3, 1, 8)),
    r"value_cache must have shape \[5, 1, 16, 8\]": lambda: write(
        key_cache=torch.zeros(5, 1, 16, 8)
    ),
    r"write_kv: key_cache must have shape \[\*, \*, 16, \*\], got \[5, 2, 4, 8\]": lambda: write(
        key_cache=torch.zeros(5, 2, 4, 8)
    ),
    r"paged_attention: key_cache must have shape \[\*, \*, 16, \*\]": attend(
        key_cache=torch.zeros(6, 2, 32, 8)
    ),
    "key_cache must be contiguous": lambda: write(
        key_cache=torch.zeros(5, 16, 2, 8).transpose(1, 2)
    ),
    r"block_tables\[0, 1\] must be from 0 to 5, got 6": attend(
        block_tables=torch.tensor([[1, 6, 2], [3, 4, 0]], dtype=torch.int32)
    ),
    r"seq_lens\[1\] needs 3 blocks, block_tables has 2": attend(
        block_tables=torch.tensor([[1, 1], [3, 4]], dtype=torch.int32),
        seq_lens=torch.tensor([32, 33], dtype=torch.int32),
    ),
    r"seq_lens\[0\] is 2, less than its 3 query tokens": attend(
        seq_lens=torch.tensor([2, 20], dtype=torch.int32)
    ),
    "must ascend to at most 4": attend(query_start_loc=torch.tensor([0, 3, 5]).int()),
    "must start with 0": attend(query_start_loc=torch.tensor([1, 3, 4]).int()),
    "has 3 heads, not a multiple of the cache's 2": attend(query=random(4, 3, 8)),
    "window must be 0 or more": attend(window=-1),
    r"ancestor_mask\[1\] names tokens after its own": attend(
        ancestor_mask=torch.tensor([1, 4, 0, 0])
    ),
}


@pytest.mark.parametrize("message", TYPE_ERRORS)
def test_a_wrong_type_is_a_type_error(message: str):
    with pytest.raises(TypeError, match=message):
        TYPE_ERRORS[message]()


@pytest.mark.parametrize("message", VALUE_ERRORS)
def test_a_wrong_shape_or_value_is_a_value_error(message: str):
    with pytest.raises(ValueError, match=message):
        VALUE_ERRORS[message]()


def test_a_refused_write_leaves_the_cache_alone():
    cache = torch.zeros(5, 2, 16, 8)
    with pytest.raises(ValueError, match="slots"):
        write(key_cache=cache, slots=torch.tensor([0, 1, 80]))
    assert not cache.any()


def test_a_tree_of_more_than_64_tokens_is_refused():
    heads = Heads(2, 1, 8)
    wide = make_batch(heads, [(make_tokens(heads, 65, FP32), 65)])
    mask = torch.zeros(65, dtype=torch.int64)
    mask[64] = 1
    with pytest.raises(ValueError, match="64 at most"):
        replace(wide, ancestor_mask=mask).attend()
