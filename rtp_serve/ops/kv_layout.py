"""How the compiled kernels order the elements of a cache tile, in torch: copies, so exact.

A tile is one head of one block, [16, head_dim]. Inside it keys are [head_dim / e, 16, e] and values
[16 / e, head_dim, e], with e = 2 elements of bfloat16 or 1 of float32 in a word of four bytes. So
keys of 16 tokens, or columns of values, are read as they lie. Knows no cache, only tiles.
"""

import torch

from rtp_serve.ops.tensor import Tensor


def key_tiles(rows: Tensor) -> Tensor:
    """Keys in plain order, [..., 16, head_dim], as the kernels hold them; a new tensor."""
    words = rows.unflatten(-1, (-1, _word_elements(rows)))
    return _copy(words.transpose(-3, -2)).view(rows.shape)


def value_tiles(rows: Tensor) -> Tensor:
    """The same of values."""
    words = rows.unflatten(-2, (-1, _word_elements(rows)))
    return _copy(words.transpose(-2, -1)).view(rows.shape)


def key_rows(tiles: Tensor) -> Tensor:
    """Keys as the kernels hold them, [..., 16, head_dim], in plain order; a new tensor."""
    size = _word_elements(tiles)
    words = tiles.flatten(-2).unflatten(-1, (tiles.shape[-1] // size, tiles.shape[-2], size))
    return _copy(words.transpose(-3, -2)).view(tiles.shape)


def value_rows(tiles: Tensor) -> Tensor:
    """The same of values."""
    size = _word_elements(tiles)
    words = tiles.flatten(-2).unflatten(-1, (tiles.shape[-2] // size, tiles.shape[-1], size))
    return _copy(words.transpose(-2, -1)).view(tiles.shape)


def _word_elements(tensor: Tensor) -> int:
    return 4 // tensor.itemsize


def _copy(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)
