"""Linear layers over packed weights: right within rounding, and the same bits in every batch."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

import rtp_kernels
from rtp_serve.ops.gemm import (
    PackedWeight,
    WeightPacker,
    embedding,
    from_packed,
    linear,
    pack_weight,
)
from tests.kernels.levels import DTYPES, ISAS, random, using

ROW_COUNTS = [1, 2, 3, 5, 6, 7, 8, 12, 13, 16, 31, 64, 96, 97, 512]

# K x N of qkv, o, gate_up, down and lm_head.
SMOLLM2_135M = [(576, 960), (576, 576), (576, 3072), (1536, 576), (576, 49152)]
QWEN3_600M = [(1024, 4096), (2048, 1024), (1024, 6144), (3072, 1024)]


def assert_rounds_to(out: Tensor, exact: Tensor, num_products: int) -> None:
    """Off by rounding alone: of sums of N(0, 1) products, then of the output's own type."""
    tolerance = 1e-6 * (num_products + 10)
    relative = 2**-8 if out.dtype == torch.bfloat16 else 0
    torch.testing.assert_close(out.double(), exact, rtol=relative, atol=tolerance)


def equal_bits(left: Tensor, right: Tensor) -> bool:
    bits = torch.int16 if left.dtype == torch.bfloat16 else torch.int32
    return left.dtype == right.dtype and torch.equal(left.view(bits), right.view(bits))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(
    ("num_rows", "num_cols"),
    [(1, 1), (1, 2), (3, 5), (31, 16), (32, 17), (33, 64), (65, 127), (100, 300), (577, 35)],
)
def test_linear_agrees_with_float64(
    isa: str, dtype: torch.dtype, has_bias: bool, num_rows: int, num_cols: int
) -> None:
    weight = random(num_rows, num_cols, dtype=dtype, seed=1)
    bias = random(num_rows, seed=2) if has_bias else None
    packed = pack_weight(weight, bias)
    with using(isa):
        for m in (1, 2, 5, 12, 13, 29):
            x = random(m, num_cols, dtype=dtype, seed=m)
            exact = x.double() @ weight.double().T + (bias.double() if has_bias else 0)
            out, sums = linear(x, packed), linear(x, packed, torch.float32)
            assert out.dtype == dtype
            assert sums.dtype == torch.float32
            assert_rounds_to(out, exact, num_cols)
            assert_rounds_to(sums, exact, num_cols)
            assert equal_bits(out, sums.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_x_may_lie_apart(dtype: torch.dtype) -> None:
    packed = pack_weight(random(70, 33, dtype=dtype))
    wide = random(20, 50, dtype=dtype)
    assert equal_bits(linear(wide[:, 7:40], packed), linear(wide[:, 7:40].contiguous(), packed))
    assert equal_bits(linear(wide[::3, 7:40], packed), linear(wide[:, 7:40], packed)[::3])


def test_no_rows_give_no_rows() -> None:
    packed = pack_weight(random(70, 33))
    assert linear(random(0, 33), packed).shape == (0, 70)
    assert embedding(np.empty(0, np.int64), packed).shape == (0, 33)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_cols", "num_rows"), SMOLLM2_135M + QWEN3_600M)
def test_a_row_has_the_same_bits_in_every_batch(
    num_cols: int, num_rows: int, dtype: torch.dtype, num_threads: int
) -> None:
    packed = pack_weight(random(num_rows, num_cols, dtype=dtype, seed=1))
    x = random(max(ROW_COUNTS), num_cols, dtype=dtype, seed=2)
    with using(rtp_kernels.isa(), num_threads=2):
        whole = linear(x, packed)
    with using(rtp_kernels.isa(), num_threads):
        for m in ROW_COUNTS:
            start = 37 if m < 400 else 0
            assert equal_bits(linear(x[start : start + m], packed), whole[start : start + m]), m


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_at_every_instruction_set(
    dtype: torch.dtype, isa: str, num_threads: int
) -> None:
    packed = pack_weight(random(250, 161, dtype=dtype, seed=1), random(250))
    x = random(300, 161, dtype=dtype, seed=2)
    with using(isa, num_threads):
        whole = linear(x, packed)
        for m in range(1, 40):
            assert equal_bits(linear(x[m : 2 * m], packed), whole[m : 2 * m]), m


@pytest.mark.skipif(not {"avx2", "avx512"} <= set(ISAS), reason="needs AVX512")
@pytest.mark.parametrize("dtype", DTYPES)
def test_avx2_and_avx512_give_the_same_bits(dtype: torch.dtype) -> None:
    packed = pack_weight(random(250, 161, dtype=dtype, seed=1), random(250))
    x = random(30, 161, dtype=dtype, seed=2)
    with using("avx2"):
        avx2 = linear(x, packed, torch.float32)
    with using("avx512"):
        assert equal_bits(linear(x, packed, torch.float32), avx2)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_that_is_not_finite_leaves_the_others_alone(dtype: torch.dtype, isa: str) -> None:
    packed = pack_weight(random(100, 33, dtype=dtype))
    x = random(14, 33, dtype=dtype)
    broken = x.clone()
    broken[3], broken[9, 32] = torch.nan, torch.inf
    others = [row for row in range(14) if row not in (3, 9)]
    with using(isa):
        out = linear(broken, packed)
        assert out[3].isnan().all()
        assert out[9].isinf().all()
        assert equal_bits(out[others], linear(x, packed)[others])


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding_gives_rows_of_the_weight(dtype: torch.dtype) -> None:
    weight = random(1000, 161, dtype=dtype)
    token_ids = np.array([0, 999, 31, 32, 33, 31, 500])
    assert equal_bits(embedding(token_ids, pack_weight(weight)), weight[token_ids])


@pytest.mark.parametrize("token_id", [-1, 100])
def test_embedding_refuses_an_id_outside_the_vocabulary(token_id: int) -> None:
    with pytest.raises(ValueError, match=rf"ids\[1\] must be from 0 to 99, got {token_id}"):
        embedding(np.array([5, token_id]), pack_weight(random(100, 8)))


def test_packed_layout_is_the_documented_one() -> None:
    weight = random(70, 33)
    padded = torch.zeros(96, 34)
    padded[:70, :33] = weight
    assert torch.equal(pack_weight(weight).data, padded[:, :33].view(3, 32, 33).transpose(1, 2))
    pairs = padded.bfloat16().view(3, 32, 17, 2).transpose(1, 2)
    assert torch.equal(pack_weight(weight.bfloat16()).data, pairs)


def test_packing_takes_rows_that_lie_apart() -> None:
    weight = random(70, 50)
    assert torch.equal(pack_weight(weight[:, :33]).data, pack_weight(weight[:, :33].clone()).data)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_rows", "num_cols"), [(1, 1), (70, 33), (64, 130), (97, 257), (5, 2)])
@pytest.mark.parametrize("step", [1, 7, 32, 45, 100])
def test_rows_packed_in_any_order_are_the_packed_weight(
    num_rows: int, num_cols: int, dtype: torch.dtype, step: int
) -> None:
    weight, bias = random(num_rows, num_cols, dtype=dtype), random(num_rows)
    packer = WeightPacker(num_rows, num_cols, dtype)
    packer.weight().data.fill_(torch.nan)  # memory may hold anything
    for first in reversed(range(0, num_rows, step)):
        packer.put(first, weight[first : first + step])
    whole, filled = pack_weight(weight, bias), packer.weight(bias)
    assert equal_bits(filled.data, whole.data)
    assert filled.bias is not None
    assert torch.equal(filled.bias, bias)
    assert equal_bits(linear(weight[:1], filled), linear(weight[:1], whole))


def test_threads_may_pack_rows_of_one_strip() -> None:
    weight = random(70, 4001, dtype=torch.bfloat16)
    packer = WeightPacker(70, 4001, torch.bfloat16)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda row: packer.put(row, weight[row : row + 1]), range(70)))
    assert equal_bits(packer.weight().data, pack_weight(weight).data)


@pytest.mark.parametrize("first_row", [-1, 68, 71, 1 << 62])
def test_rows_outside_the_weight_are_refused(first_row: int) -> None:
    packer = WeightPacker(70, 33, torch.float32)
    with pytest.raises(ValueError, match=rf"3 rows from row {first_row} on are not among 70"):
        packer.put(first_row, random(3, 33))


def test_rows_of_another_kind_are_refused() -> None:
    packer = WeightPacker(70, 33, torch.float32)
    with pytest.raises(ValueError, match=r"packed must have shape \[3, 34, 32\]"):
        packer.put(0, random(3, 34))
    with pytest.raises(TypeError, match="packed must be bfloat16 like rows"):
        packer.put(0, random(3, 33, dtype=torch.bfloat16))


def test_a_weight_from_packed_memory_needs_no_copy() -> None:
    packed = pack_weight(random(70, 33), random(70))
    mapped = from_packed(packed.data, packed.bias, 70, 33)
    assert mapped.data.data_ptr() == packed.data.data_ptr()
    assert equal_bits(linear(random(3, 33), mapped), linear(random(3, 33), packed))
    with pytest.raises(ValueError, match=r"packed must have shape \[3, 34, 32\]"):
        from_packed(packed.data, None, 70, 34)


def test_linear_refuses_what_does_not_fit() -> None:
    packed = pack_weight(random(70, 33))
    with pytest.raises(TypeError, match=r"x must be float32 like its weight"):
        linear(random(3, 33).bfloat16(), packed)
    with pytest.raises(TypeError, match=r"out_dtype must be torch\.float32"):
        linear(random(3, 33), packed, torch.bfloat16)
    with pytest.raises(ValueError, match=r"x must be \[\*, 33\], got \[3, 32\]"):
        linear(random(3, 32), packed)
    with pytest.raises(ValueError, match="one after the other"):
        linear(random(33, 3).T, packed)
    with pytest.raises(TypeError, match="must be bfloat16 or float32"):
        pack_weight(random(70, 33).half())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_agrees_with_float64(dtype: torch.dtype) -> None:
    weight, bias = random(70, 33, dtype=dtype, seed=1), random(70, seed=2)
    plain = PackedWeight(weight, bias, 70, 33, kernel=None)
    for m in (0, 1, 2, 13):
        x = random(m, 33, dtype=dtype, seed=3)
        exact = x.double() @ weight.double().T + bias.to(dtype).double()
        assert_rounds_to(linear(x, plain, torch.float32), exact, 33_000)
        assert linear(x, plain).shape == (m, 70)
    assert equal_bits(linear(x[:1], plain), linear(x[:2], plain)[:1])
    assert equal_bits(embedding(np.array([69, 0]), plain), weight[[69, 0]])
