from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import TensorSpec, serialize

from rtp_serve.loader.safetensors_writer import bfloat16_bits, write_bfloat16
from tests.unit.loader.safetensors_files import read_bfloat16


def value_of(bits: int) -> float:
    return float(np.array([bits << 16], np.uint32).view(np.float32)[0])


@given(st.floats(width=32, allow_nan=False, min_value=-(2.0**127), max_value=2.0**127))
def test_a_value_becomes_the_nearest_bfloat16_ties_to_even(value: float):
    bits = int(bfloat16_bits(np.array([value], np.float32))[0])
    distance = abs(value_of(bits) - value)
    for neighbour in (bits - 1, bits + 1):
        if neighbour & 0x7FFF < 0x7F80 and neighbour >= 0:
            other = abs(value_of(neighbour) - value)
            assert distance < other or (distance == other and bits % 2 == 0)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (0x3F808000, 0x3F80),  # halfway: down to even
        (0x3F818000, 0x3F82),  # halfway: up to even
        (0x3F808001, 0x3F81),
        (0x7F7FFFFF, 0x7F80),  # the largest float32 overflows to infinity
        (0xFF800000, 0xFF80),
        (0x80000000, 0x8000),
        (0x7F800001, 0x7FC0),  # a NaN whose upper half alone would be infinity
        (0xFFFFFFFF, 0x7FC0),  # a NaN that rounding would carry over to zero
    ],
)
def test_special_patterns(pattern: int, expected: int):
    values = np.array([pattern], np.uint32).view(np.float32)
    assert bfloat16_bits(values)[0] == expected


def test_the_file_is_the_one_the_library_would_write(tmp_path: Path):
    random = np.random.default_rng(0)
    tensors = {
        name: random.integers(0, 1 << 16, shape, dtype=np.uint16)
        for name, shape in {"b": (3, 4), "a.10": (5,), "a.9": (2, 2, 2), "empty": (0, 4)}.items()
    }
    pieces = [tensors[name] for name in sorted(tensors)]
    path = tmp_path / "model.safetensors"
    write_bfloat16(path, {name: values.shape for name, values in tensors.items()}, pieces)
    expected = serialize(
        {
            name: TensorSpec(
                dtype="bfloat16",
                shape=values.shape,
                data_ptr=values.ctypes.data,
                data_len=values.nbytes,
            )
            for name, values in tensors.items()
        },
        {"format": "pt"},
    )
    assert path.read_bytes() == expected


def test_pieces_may_be_cut_anywhere(tmp_path: Path):
    values = np.arange(12, dtype=np.uint16)
    path = tmp_path / "model.safetensors"
    write_bfloat16(path, {"x": (3, 4)}, [values[:5], values[5:]])
    assert (read_bfloat16(path)["x"] == values.reshape(3, 4)).all()


def test_too_few_values_are_noticed(tmp_path: Path):
    with pytest.raises(AssertionError, match="wrote 4 of 8 bytes"):
        write_bfloat16(tmp_path / "x", {"x": (4,)}, [np.zeros(2, np.uint16)])
