"""Rotary position embedding: a table of angles, made once, and its application."""

import math

import numpy as np
from numpy.typing import NDArray

from rtp_serve import ops
from rtp_serve.config.model import RopeConfig
from rtp_serve.ops.tensor import Tensor


class RotaryEmbedding:
    """Turns q and k by their positions."""

    def __init__(
        self, config: RopeConfig, head_dim: int, max_positions: int, like: ops.Array
    ) -> None:
        """The table is of the kind, and on the device, of the array `like`."""
        table = cos_sin_table(config, head_dim, max_positions)
        cos_sin: ops.Array = ops.HostArray(table, "float32")
        if not isinstance(like, ops.HostArray):
            cos_sin = ops.as_tensor(cos_sin).to(like.device)
        self.rope = ops.Rope(cos_sin, config.mrope_sections)

    def __call__(self, query: Tensor, key: Tensor, positions: Tensor) -> None:
        """Turn query and key [num_tokens, heads, head_dim] in place.

        positions [num_tokens], or [3, num_tokens] (time, height, width) under M-RoPE.
        """
        sections = self.rope.sections if positions.dim() == 2 else ()
        ops.rotary(query, key, positions, ops.as_tensor(self.rope.cos_sin), sections=sections)


def cos_sin_table(config: RopeConfig, head_dim: int, max_positions: int) -> NDArray[np.float32]:
    """[max_positions, head_dim]: cosines, then sines, of position · frequency.

    Angles are fp32, as the models were trained; of these the nearest fp32 numbers, which no
    library's fp32 functions would give on every processor.
    """
    positions = np.arange(max_positions, dtype=np.float32)
    angles = np.outer(positions, inverse_frequencies(config, head_dim))
    table = np.empty((max_positions, head_dim), np.float32)
    cosines, sines = np.hsplit(table, 2)
    np.cos(angles, out=cosines, dtype=np.float64, casting="same_kind")
    np.sin(angles, out=sines, dtype=np.float64, casting="same_kind")
    return table


def inverse_frequencies(config: RopeConfig, head_dim: int) -> NDArray[np.float32]:
    """[head_dim / 2]: radians per position, with each step in fp32."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = np.power(config.theta, exponents, dtype=np.float64).astype(np.float32)
    frequencies = np.float32(1) / powers
    if config.kind == "linear":
        return frequencies / np.float32(config.factor)
    if config.kind == "llama3":
        return _llama3(config, frequencies)
    return frequencies


def _llama3(config: RopeConfig, frequencies: NDArray[np.float32]) -> NDArray[np.float32]:
    """Long wavelengths are stretched by `factor`, short ones kept, those between interpolated."""
    wavelengths = np.float32(2 * math.pi) / frequencies
    turns = np.float32(config.original_max_len) / wavelengths
    low, high = np.float32(config.low_freq_factor), np.float32(config.high_freq_factor)
    keep: NDArray[np.float32] = ((turns - low) / (high - low)).clip(0, 1)
    factor = np.float32(config.factor)
    return (np.float32(1) - keep) * frequencies / factor + keep * frequencies
