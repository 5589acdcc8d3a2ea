"""Writes a safetensors file piece by piece, so that no tensor need be in memory whole.

The library's writer wants every tensor at once. The format is

    header length, uint64 little-endian | JSON header, padded with spaces to 8 bytes | tensor data
"""

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BYTES_PER_BFLOAT16 = 2
_ALIGNMENT = 8


def write_bfloat16(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    pieces: Iterable[NDArray[np.uint16]],
) -> None:
    """Write tensors named and shaped by `shapes`, in order of name.

    `pieces` yields bfloat16 bits in that same order, row-major, cut anywhere.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(shapes):
        start, end = end, end + num_bytes(shapes[name])
        header[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        data_start = file.tell()
        for piece in pieces:
            file.write(piece.data)
        assert file.tell() - data_start == end, f"wrote {file.tell() - data_start} of {end} bytes"


def num_bytes(shape: tuple[int, ...]) -> int:
    """Bytes of a bfloat16 tensor."""
    return int(np.prod(shape, dtype=np.int64)) * BYTES_PER_BFLOAT16


def bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of each value as bfloat16: rounded to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))
    result = (rounded >> 16).astype(np.uint16)
    is_nan = np.isnan(values)
    if is_nan.any():
        result[is_nan] = 0x7FC0
    return result
