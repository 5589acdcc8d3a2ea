"""Coded weights are the plain ones, bit for bit, in every product, and less memory."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rtp_serve.ops.gemm import (
    Norm,
    PackedWeight,
    coded_shape,
    embedding,
    from_packed,
    linear,
    logits,
    pack_weight,
    with_codes,
)
from tests.kernels.levels import ISAS, bits, random, using

SHAPES = [(1, 1), (32, 4), (33, 7), (64, 64), (100, 30), (70, 1025), (1000, 576), (96, 1100)]
ROW_COUNTS = [1, 2, 3, 5, 6, 7, 12, 13, 16, 24, 25, 36, 100]


def weight_of(num_rows: int, num_cols: int) -> Tensor:
    """With elements that no strip's codes have room for."""
    weight = random(num_rows, num_cols, dtype=torch.bfloat16)
    weight[0, 0] = 0.0
    weight[num_rows // 2, num_cols // 3] = -0.0
    weight[-1, -1] = 1e-30
    weight[num_rows // 3, num_cols // 2] = -3e20
    return weight


def coded(weight: Tensor, bias: Tensor | None = None) -> PackedWeight:
    """Whatever part of it are escapes."""
    plain = pack_weight(weight, bias)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rtp_serve.ops.gemm._MAX_ESCAPES", 1.0)
        result = with_codes(plain)
    assert result.escapes is not None
    return result


def assert_equal_products(weight: Tensor, m: int) -> None:
    bias = random(len(weight), seed=5)
    x = random(m, weight.shape[1], dtype=torch.bfloat16, seed=m)
    plain = pack_weight(weight, bias)
    other = coded(weight, bias)
    for out_dtype in ("bfloat16", "float32"):
        expected = linear(x, plain, out_dtype)
        assert torch.equal(bits(linear(x, other, out_dtype)), bits(expected))


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("num_rows", "num_cols"), SHAPES)
def test_products_are_those_of_the_plain_weight(
    num_rows: int, num_cols: int, isa: str, num_threads: int
):
    weight = weight_of(num_rows, num_cols)
    with using(isa, num_threads):
        for m in ROW_COUNTS:
            assert_equal_products(weight, m)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1 << 30),
    num_rows=st.integers(1, 100),
    num_cols=st.integers(1, 300),
    m=st.integers(1, 30),
)
def test_any_bits_are_kept(seed: int, num_rows: int, num_cols: int, m: int):
    """Infinities and subnormals too, all of them escapes as a rule; NaN has too many kinds."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(-(1 << 15), 1 << 15, (num_rows, num_cols), generator=generator)
    weight = words.to(torch.int16).view(torch.bfloat16)
    weight = torch.where(weight.isnan(), torch.ones((), dtype=torch.bfloat16), weight)
    rows = np.arange(num_rows)
    assert torch.equal(bits(embedding(rows, coded(weight))), bits(weight))
    x = random(m, num_cols, dtype=torch.bfloat16, seed=seed % 1000)
    plain, other = (linear(x, each, "float32") for each in (pack_weight(weight), coded(weight)))
    assert torch.equal(plain.isnan(), other.isnan())
    assert torch.equal(bits(plain.nan_to_num()), bits(other.nan_to_num()))


def test_logits_and_rows_are_those_of_the_plain_weight():
    weight = weight_of(1000, 130)
    x, rows = random(5, 130, dtype=torch.bfloat16, seed=1), np.array([4, 0])
    norm = Norm(torch.ones(130, dtype=torch.bfloat16), 1e-6)
    expected = logits(x, rows, norm, pack_weight(weight))
    assert np.array_equal(logits(x, rows, norm, coded(weight)), expected)
    ids = np.array([0, 999, 500, 333, 31, 32])
    assert torch.equal(bits(embedding(ids, coded(weight))), bits(weight[ids]))


def test_a_trained_weight_takes_three_quarters():
    weight = random(2048, 1024, dtype=torch.bfloat16)
    packed = with_codes(pack_weight(weight))
    assert packed.escapes is not None
    num_bytes = packed.stored.numel() + 2 * len(packed.escapes)
    assert 0.75 <= num_bytes / (2 * weight.numel()) < 0.76
    assert len(packed.escapes) < weight.numel() / 2000
    assert packed.dtype == torch.bfloat16


def test_a_weight_that_gains_nothing_stays_plain():
    words = torch.randint(-(1 << 15), 1 << 15, (64, 64), generator=torch.Generator().manual_seed(0))
    plain = pack_weight(words.to(torch.int16).view(torch.bfloat16))
    assert with_codes(plain) is plain


def test_strips_that_are_damaged_read_nothing_that_is_not_theirs():
    packed = coded(weight_of(64, 64))
    assert packed.escapes is not None
    x = random(3, 64, dtype=torch.bfloat16)
    beyond = packed.stored.clone()
    beyond[1, 20] = 255  # where the strip's escapes end
    with pytest.raises(ValueError, match="strip 1 has escapes beyond the last"):
        from_packed(beyond, None, 64, 64, escapes=packed.escapes)
    more = packed.stored.clone()
    more[:, 24] = 1  # the first group has escapes,
    more[:, 64 + 128 : 64 + 192] = 255  # which are all of it
    for isa in ISAS:
        with using(isa):
            assert linear(x, from_packed(more, None, 64, 64, escapes=packed.escapes)).shape == (
                3,
                64,
            )


def test_strips_of_another_size_are_refused():
    packed = coded(weight_of(64, 64))
    assert tuple(packed.stored.shape) == coded_shape(64, 64)
    with pytest.raises(ValueError, match=r"packed must have shape \[3, 3136\]"):
        from_packed(packed.stored, None, 96, 64, escapes=packed.escapes)
    with pytest.raises(TypeError, match="packed must be uint8"):
        from_packed(pack_weight(weight_of(64, 64)).stored, None, 64, 64, escapes=packed.escapes)
