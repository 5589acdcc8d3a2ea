import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from rtp_serve.errors import CheckpointError
from rtp_serve.loader.gguf.convert import convert_gguf
from rtp_serve.loader.gguf.reader import read_gguf
from tests.unit.loader.gguf_files import tiny_gguf, write_gguf

FIELDS = {
    "general.architecture": "llama",
    "a.text": "grüße",
    "a.number": 7,
    "a.ratio": 0.5,
    "a.flag": True,
    "a.numbers": [1, -2, 3],
    "a.texts": ["x", "", "▁y"],
}


def test_metadata_and_tensors_are_read_as_the_library_reads_them(tmp_path: Path):
    path = tiny_gguf(tmp_path / "model.gguf", kind=gguf.GGMLQuantizationType.Q8_0, fields=FIELDS)
    source, oracle = read_gguf(path), gguf.GGUFReader(path)
    for key, field in oracle.fields.items():
        if not key.startswith("GGUF."):
            assert source.metadata[key] == field.contents(), key
    assert list(source.tensors) == [tensor.name for tensor in oracle.tensors]
    for tensor in oracle.tensors:
        mine = source.tensors[tensor.name]
        assert mine.shape == tuple(reversed(tensor.shape.tolist()))
        values = mine.dequantize(0, len(mine.rows)).reshape(mine.shape)
        np.testing.assert_array_equal(values, gguf.dequantize(tensor.data, tensor.tensor_type))


def test_values_are_asked_for_by_type(tmp_path: Path):
    source = read_gguf(write_gguf(tmp_path / "model.gguf", FIELDS, {}))
    assert source.get("a.number", int) == 7
    assert source.get("a.number", float) == 7.0
    assert source.get("a.absent", str, "default") == "default"
    with pytest.raises(CheckpointError, match=r"a.absent is missing"):
        source.get("a.absent", int)
    with pytest.raises(CheckpointError, match=r"a.text must be int, got str"):
        source.get("a.text", int)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot read"),
        (b"GG", "truncated"),
        (b"PK\x03\x04" + bytes(20), "is not a GGUF file"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(16), "version 1 is not supported"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(16), "little-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "truncated"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "truncated"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 0, 1 << 60), "truncated"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 9, 1), "type 9 is not known"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"\xff", 4), "not UTF-8"),
    ],
)
def test_a_malformed_header_is_refused(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_gguf(path)


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="cannot read"):
        read_gguf(tmp_path / "model.gguf")


def test_every_truncation_is_noticed(tmp_path: Path):
    """The last tensor ends the file, but for padding."""
    whole = tiny_gguf(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for size in [*range(0, 200, 3), *range(200, len(whole) - 32, 4001)]:
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            read_gguf(path)


def test_damaged_headers_never_end_in_another_error(tmp_path: Path):
    """A damaged byte is noticed or harmless."""
    whole = tiny_gguf(tmp_path / "whole.gguf", "qwen2").read_bytes()
    source = random.Random(11)
    path = tmp_path / "damaged.gguf"
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(source.randrange(1, 4)):
            damaged[source.randrange(9000)] = source.choice([0, 1, 0x7F, 0x80, 0xFF])
        path.write_bytes(damaged)
        try:
            convert_gguf(path, tmp_path, is_quiet=True)
        except CheckpointError:
            refused += 1
    assert refused > 10
