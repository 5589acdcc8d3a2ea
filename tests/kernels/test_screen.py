"""Greedy tokens by way of a screen are those of all logits, of which few are computed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rtp_serve.ops import sampling
from rtp_serve.ops.draws import NO_TOKEN
from rtp_serve.ops.gemm import (
    Norm,
    PackedWeight,
    from_packed,
    greedy,
    logits,
    pack_weight,
    screen_shape,
    with_screen,
)
from tests.kernels.levels import ISAS, random, using

SHAPES = [(1, 1), (33, 7), (1000, 64), (777, 1025), (4096, 130), (8192, 576)]


def norm_of(num_cols: int) -> Norm:
    return Norm(random(num_cols, seed=9).abs().add(0.5).bfloat16(), 1e-6)


def screened(weight: Tensor) -> PackedWeight:
    return with_screen(pack_weight(weight))


def expected(x: Tensor, weight: PackedWeight) -> list[int]:
    every = logits(x, np.arange(len(x)), norm_of(weight.num_cols), weight)
    return sampling.greedy(every).tolist()


def chosen(x: Tensor, weight: PackedWeight) -> list[int]:
    return greedy(x, np.arange(len(x)), norm_of(weight.num_cols), weight).tolist()


def strips_computed(x: Tensor, weight: PackedWeight) -> int:
    norm = norm_of(weight.num_cols)
    assert weight.kernel is not None
    rows = np.arange(len(x))
    return weight.kernel.greedy(
        np.empty(len(x), np.int32), x.data_ptr(), len(x), x.stride(0), rows,
        norm.weight.data_ptr(), norm.eps,
    )  # fmt: skip


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("num_rows", "num_cols"), SHAPES)
def test_tokens_are_those_of_all_logits(num_rows: int, num_cols: int, isa: str, num_threads: int):
    weight = screened(random(num_rows, num_cols, dtype=torch.bfloat16))
    with using(isa, num_threads):
        for m in (1, 2, 3, 4, 6, 7, 11, 12, 13):
            x = random(m, num_cols, dtype=torch.bfloat16, seed=m)
            assert chosen(x, weight) == expected(x, weight)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1 << 30),
    num_rows=st.integers(300, 1200),
    num_cols=st.integers(1, 200),
    outliers=st.integers(0, 4),
    spread=st.floats(-30, 30),
)
def test_tokens_are_those_of_all_logits_whatever_the_numbers(
    seed: int, num_rows: int, num_cols: int, outliers: int, spread: float
):
    """Rows of the weight of very different lengths, many of them alike, columns that stick out."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(num_rows, num_cols, generator=generator)
    weight *= torch.exp2(torch.rand(num_rows, 1, generator=generator) * spread)
    weight[1::3] = weight[::3][: len(weight[1::3])]
    x = torch.randn(5, num_cols, generator=generator)
    x[:, :outliers] *= 300
    packed = screened(weight.bfloat16())
    assert chosen(x.bfloat16(), packed) == expected(x.bfloat16(), packed)


@pytest.mark.parametrize("isa", ISAS)
def test_few_logits_are_computed(isa: str):
    weight = screened(random(1 << 15, 256, dtype=torch.bfloat16))
    with using(isa):
        assert strips_computed(random(1, 256, dtype=torch.bfloat16, seed=1), weight) <= 16
        x = random(8, 256, dtype=torch.bfloat16, seed=1)
        x[:, 7] *= 100  # as one channel of many models does
        assert strips_computed(x, weight) <= 64


def test_of_equal_logits_the_lowest_id_is_taken():
    weight = random(4096, 64, dtype=torch.bfloat16)
    weight[[4000, 999, 1000]] = 4 * weight[:1].abs()
    packed, x = screened(weight), weight[:1].abs()
    assert strips_computed(x, packed) < 16
    assert chosen(x, packed) == [999]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_rows_that_are_no_numbers_have_no_token(value: float):
    weight = random(4096, 64, dtype=torch.bfloat16)
    x = random(3, 64, dtype=torch.bfloat16, seed=1)
    broken = x.clone()
    broken[1, 5] = value
    packed = screened(weight)
    assert chosen(broken, packed) == expected(broken, packed)
    weight[77, 5] = value
    packed = screened(weight)
    assert chosen(x, packed) == expected(x, packed)
    if np.isnan(value):
        assert chosen(x, packed) == 3 * [NO_TOKEN]


def test_a_row_of_zeros_has_the_first_token():
    packed = screened(random(4096, 64, dtype=torch.bfloat16))
    assert chosen(torch.zeros(2, 64, dtype=torch.bfloat16), packed) == [0, 0]


def test_a_screen_is_of_a_weight_that_it_fits():
    packed = pack_weight(random(70, 33, dtype=torch.bfloat16))
    screen = with_screen(packed).screen
    assert screen is not None
    assert tuple(screen.shape) == screen_shape(70, 33) == (3, 32 * (36 + 12))
    with pytest.raises(ValueError, match=r"screen must have shape \[3, 1536\], got \[3, 1535\]"):
        from_packed(packed.stored, None, 70, 33, torch.empty(3, 1535, dtype=torch.uint8))
    with pytest.raises(TypeError, match="screen must be uint8"):
        from_packed(packed.stored, None, 70, 33, torch.empty(3, 1536))
    with pytest.raises(ValueError, match="a bfloat16 weight without bias"):
        from_packed(packed.stored, torch.zeros(70), 70, 33, screen)
    with pytest.raises(TypeError, match="packed must be bfloat16"):
        with_screen(pack_weight(random(70, 33)))
