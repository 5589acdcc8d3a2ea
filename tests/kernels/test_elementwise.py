"""Norms, rotary and the gated activation: right within rounding, rows independent of the batch."""

import pytest
import torch

from rtp_serve.ops import compiled, reference
from tests.kernels.levels import DTYPES, ISAS, assert_near, bits, random, using

pytestmark = [pytest.mark.parametrize("isa", ISAS), pytest.mark.parametrize("dtype", DTYPES)]

# Whole registers at every level, a rest, less than a register.
WIDTHS = [576, 64, 100, 7, 1]


@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm_agrees_with_the_reference(isa: str, dtype: torch.dtype, width: int):
    x, weight = random(9, width, dtype=dtype), random(width, dtype=dtype, seed=1)
    with using(isa):
        assert_near(compiled.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))


def test_rms_norm_takes_heads_inside_a_fused_projection(isa: str, dtype: torch.dtype):
    heads = random(5, 7, 64, dtype=dtype)[:, 2:6]
    weight = random(64, dtype=dtype, seed=1)
    with using(isa):
        normed = compiled.rms_norm(heads, weight, 1e-6)
        one_by_one = [compiled.rms_norm(heads[:, i], weight, 1e-6) for i in range(4)]
    assert normed.is_contiguous()
    assert torch.equal(bits(normed), bits(torch.stack(one_by_one, dim=1)))
    assert_near(normed, reference.rms_norm(heads, weight, 1e-6))


@pytest.mark.parametrize("width", WIDTHS)
def test_silu_and_mul_agrees_with_the_reference(isa: str, dtype: torch.dtype, width: int):
    gate_up = random(9, 2 * width, dtype=dtype) * 4
    with using(isa):
        assert_near(compiled.silu_and_mul(gate_up), reference.silu_and_mul(gate_up), scale=4)


def test_silu_saturates_without_becoming_nan(isa: str, dtype: torch.dtype):
    gates = torch.tensor([[-1e30, -300.0, -88.0, 0.0, 88.0, 300.0, 1e30]])
    gate_up = torch.cat((gates, torch.ones_like(gates)), dim=1).to(dtype)
    with using(isa):
        gated = compiled.silu_and_mul(gate_up)
    assert_near(gated, reference.silu_and_mul(gate_up))
    assert (gated[0, :3].abs() < 1e-30).all()


@pytest.mark.parametrize("head_dim", [64, 128, 32, 20, 2])
def test_rotary_turns_strided_heads_like_the_reference(isa: str, dtype: torch.dtype, head_dim: int):
    qkv = random(11, 9 * head_dim, dtype=dtype)
    cos_sin = _angles(50, head_dim)
    positions = torch.arange(11) * 4
    expected, actual = qkv.clone(), qkv.clone()
    reference.rotary(*_heads(expected, head_dim), positions, cos_sin)
    with using(isa):
        compiled.rotary(*_heads(actual, head_dim), positions, cos_sin)
    assert_near(actual, expected)
    assert torch.equal(bits(actual[:, 8 * head_dim :]), bits(qkv[:, 8 * head_dim :]))


@pytest.mark.parametrize("sections", [(8, 12, 12), (32, 0, 0), (0, 0, 32)])
def test_rotary_gives_each_position_row_its_section(
    isa: str, dtype: torch.dtype, sections: tuple[int, ...]
):
    head_dim = 64
    qkv = random(6, 9 * head_dim, dtype=dtype)
    cos_sin = _angles(50, head_dim)
    positions = torch.stack((torch.arange(6), torch.arange(6) * 3, 49 - torch.arange(6)))
    expected, actual = qkv.clone(), qkv.clone()
    reference.rotary(*_heads(expected, head_dim), positions, cos_sin, sections)
    with using(isa):
        compiled.rotary(*_heads(actual, head_dim), positions, cos_sin, sections)
    assert_near(actual, expected)


def test_equal_position_rows_turn_like_one(isa: str, dtype: torch.dtype):
    qkv = random(6, 9 * 64, dtype=dtype)
    cos_sin, positions = _angles(50, 64), torch.arange(6) * 5
    one, three = qkv.clone(), qkv.clone()
    with using(isa):
        compiled.rotary(*_heads(one, 64), positions, cos_sin)
        compiled.rotary(*_heads(three, 64), positions.expand(3, -1), cos_sin, (8, 12, 12))
    assert torch.equal(bits(one), bits(three))


def test_rows_have_the_same_bits_in_any_batch(isa: str, dtype: torch.dtype):
    """Enough rows that two threads share them."""
    x, weight = random(300, 576, dtype=dtype), random(576, dtype=dtype, seed=1)
    for op in (
        lambda rows: compiled.rms_norm(x[rows], weight, 1e-5),
        lambda rows: compiled.silu_and_mul(x[rows]),
    ):
        with using(isa, num_threads=2):
            together = op(slice(None))
        with using(isa):
            alone = torch.cat([op(slice(row, row + 1)) for row in range(0, 300, 37)])
        assert torch.equal(bits(together[::37]), bits(alone))


def test_no_rows_give_no_rows(isa: str, dtype: torch.dtype):
    empty = torch.empty(0, 64, dtype=dtype)
    with using(isa):
        assert compiled.rms_norm(empty, random(64, dtype=dtype), 1e-5).shape == (0, 64)
        assert compiled.silu_and_mul(empty).shape == (0, 32)
        heads = torch.empty(0, 4, 64, dtype=dtype)
        compiled.rotary(heads, heads, torch.empty(0, dtype=torch.int64), _angles(4, 64))


def _heads(qkv: torch.Tensor, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    heads = qkv.view(qkv.shape[0], 9, head_dim)
    return heads[:, :6], heads[:, 6:8]


def _angles(max_positions: int, head_dim: int) -> torch.Tensor:
    frequencies = 100.0 ** -torch.linspace(0, 1, head_dim // 2)
    angles = torch.outer(torch.arange(max_positions).float(), frequencies)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)
