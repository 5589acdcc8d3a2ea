"""The torch reference against definitions from elsewhere: it is the truth of the other tests."""

import math

import torch
from torch.nn import functional

from rtp_serve.ops import reference
from tests.kernels.batches import Heads, make_batch, make_tokens
from tests.kernels.levels import random


def test_attention_is_torchs_own_over_the_unpaged_keys():
    heads = Heads(9, 3, 32)
    tokens = make_tokens(heads, 45, torch.float32)
    query, key, value = (
        part.transpose(0, 1)[None] for part in (tokens.query, tokens.key, tokens.value)
    )
    expected = functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=True
    )
    chunk = make_batch(heads, [(tokens, 20)]).attend(reference)
    torch.testing.assert_close(chunk, expected[0].transpose(0, 1)[25:], rtol=1e-5, atol=1e-6)


def test_rms_norm_is_torchs_own():
    x, weight = random(5, 64), random(64, seed=1)
    expected = functional.rms_norm(x, (64,), weight, 1e-5)
    torch.testing.assert_close(reference.rms_norm(x, weight, 1e-5), expected)


def test_rotary_is_a_plane_rotation_per_frequency():
    """Frequency i turns elements i and i + d/2 by the angle of the position row that owns i."""
    angles = torch.outer(torch.arange(20.0), torch.tensor([1.0, 0.5, 0.25, 0.125]))
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1)
    positions = torch.tensor([[3, 4], [7, 8], [11, 19]])
    owners = [0, 1, 1, 2]
    query, key = random(2, 1, 8), random(2, 1, 8, seed=1)
    turned = query.clone()
    reference.rotary(turned, key, positions, cos_sin, (1, 2, 1))
    for token in range(2):
        for i, owner in enumerate(owners):
            point = complex(query[token, 0, i], query[token, 0, i + 4])
            angle = float(positions[owner, token]) * 0.5**i
            point *= complex(math.cos(angle), math.sin(angle))
            pair = turned[token, 0, [i, i + 4]]
            torch.testing.assert_close(pair, torch.tensor([point.real, point.imag]))
