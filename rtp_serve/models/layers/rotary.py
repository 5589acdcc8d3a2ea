"""Rotary position embedding: a table of angles, made once, and its application."""

import math

import torch
from torch import Tensor

from rtp_serve import ops
from rtp_serve.config.model import RopeConfig


class RotaryEmbedding:
    """Turns q and k by their positions."""

    def __init__(
        self, config: RopeConfig, head_dim: int, max_positions: int, device: torch.device
    ) -> None:
        cos_sin = cos_sin_table(config, head_dim, max_positions).to(device)
        self.rope = ops.Rope(cos_sin, config.mrope_sections)

    def __call__(self, query: Tensor, key: Tensor, positions: Tensor) -> None:
        """Turn query and key [num_tokens, heads, head_dim] in place.

        positions [num_tokens], or [3, num_tokens] (time, height, width) under M-RoPE.
        """
        sections = self.rope.sections if positions.dim() == 2 else ()
        ops.rotary(query, key, positions, self.rope.cos_sin, sections=sections)


def cos_sin_table(config: RopeConfig, head_dim: int, max_positions: int) -> Tensor:
    """[max_positions, head_dim], fp32: cosines, then sines, of position · frequency.

    In fp32 throughout, as the models were trained.
    """
    positions = torch.arange(max_positions, dtype=torch.float32)
    angles = torch.outer(positions, inverse_frequencies(config, head_dim))
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def inverse_frequencies(config: RopeConfig, head_dim: int) -> Tensor:
    """[head_dim / 2], fp32: radians per position."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / (config.theta**exponents)
    if config.kind == "linear":
        return frequencies / config.factor
    if config.kind == "llama3":
        return _llama3(config, frequencies)
    return frequencies


def _llama3(config: RopeConfig, frequencies: Tensor) -> Tensor:
    """Long wavelengths are stretched by `factor`, short ones kept, those between interpolated."""
    wavelengths = 2 * math.pi / frequencies
    turns = config.original_max_len / wavelengths
    low, high = config.low_freq_factor, config.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - keep) * frequencies / config.factor + keep * frequencies
