"""The header parser: what the library wrote it reads, and of the rest it says what is wrong."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, TensorSpec, deserialize, serialize

from rtp_serve.errors import CheckpointError
from rtp_serve.loader.safetensors_header import DTYPE_BITS, StoredTensor, parse_header, read_header
from tests.unit.loader.malformed_files import DATA, GOOD, file_of, good_file, malformed_files

MALFORMED = list(malformed_files())
PATH = Path("model.safetensors")


def header_of(content: bytes) -> tuple[StoredTensor, ...]:
    return parse_header(PATH, content[8 : 8 + int.from_bytes(content[:8], "little")], len(content))


def test_a_good_file_gives_its_tensors_by_offset(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(good_file())
    start = len(good_file()) - len(DATA)
    assert read_header(path) == (
        StoredTensor("a", path, "F32", (2, 3), start, 24),
        StoredTensor("b", path, "BF16", (4,), start + 24, 8),
    )


def test_the_corpus_is_large_and_names_each_mutation_once():
    assert len(MALFORMED) >= 200
    assert len({name for name, _ in MALFORMED}) == len(MALFORMED)


@pytest.mark.parametrize(
    "content", [file for _, file in MALFORMED], ids=[name[:30] for name, _ in MALFORMED]
)
def test_a_malformed_file_is_one_clear_error(tmp_path: Path, content: bytes):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors is not a safetensors file: "
    ) as e:
        read_header(path)
    assert len(str(e.value)) < len(str(tmp_path)) + 600
    assert str(e.value).isprintable()


@pytest.mark.parametrize(
    "content",
    [file for name, file in MALFORMED if "twice" not in name],
    ids=[name[:30] for name, _ in MALFORMED if "twice" not in name],
)
def test_only_for_repeated_keys_are_we_stricter_than_the_library(content: bytes):
    with pytest.raises(SafetensorError):
        deserialize(content)


_sizes = st.lists(st.integers(0, 4), max_size=3)
_names = st.text(min_size=1, max_size=5).filter(lambda name: name != "__metadata__")


@given(st.dictionaries(_names, _sizes, max_size=5))
def test_what_the_library_writes_is_read_as_it_reads_it(shapes: dict[str, list[int]]):
    array = np.zeros(64, np.uint8)
    specs = {
        name: TensorSpec(
            dtype="uint8", shape=shape, data_ptr=array.ctypes.data, data_len=int(np.prod(shape))
        )
        for name, shape in shapes.items()
    }
    content = serialize(specs)
    theirs = {name: tensor["shape"] for name, tensor in deserialize(content)}
    ours = header_of(content)
    assert {tensor.name: list(tensor.shape) for tensor in ours} == theirs == shapes
    assert [tensor.offset for tensor in ours] == sorted(tensor.offset for tensor in ours)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_header_or_an_error(header: bytes):
    try:
        parse_header(PATH, header, 8 + len(header) + 32)
    except CheckpointError:
        return
    raise AssertionError("32 bytes of data belong to nobody")


@given(st.integers(0, 160), st.integers(0, 255))
def test_one_wrong_byte_is_a_header_or_an_error(place: int, byte: int):
    header = bytearray(json.dumps(GOOD).encode())
    header[place % len(header)] = byte
    try:
        tensors = parse_header(PATH, bytes(header), 8 + len(header) + len(DATA))
    except CheckpointError:
        return
    assert sum(tensor.num_bytes for tensor in tensors) == len(DATA)


def test_an_empty_file_of_no_tensors_is_good():
    assert header_of(file_of(b"{}   ", b"")) == ()


def test_an_unknown_field_is_passed_over():
    entry = {**GOOD["a"], "strides": [3, 1]}
    assert len(header_of(file_of(json.dumps({**GOOD, "a": entry}).encode()))) == 2


def test_tensors_without_elements_may_lie_anywhere_between_others():
    header = {**GOOD, "none": {"dtype": "F64", "shape": [0, 7], "data_offsets": [24, 24]}}
    assert len(header_of(file_of(json.dumps(header).encode()))) == 3


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_every_type_of_the_format_has_its_size(dtype: str):
    num_bytes = 32 * DTYPE_BITS[dtype] // 8
    header = {"a": {"dtype": dtype, "shape": [4, 8], "data_offsets": [0, num_bytes]}}
    assert header_of(file_of(json.dumps(header).encode(), bytes(num_bytes)))[0].dtype == dtype


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_header(tmp_path / "model.safetensors")


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors is not a safetensors file: .*No"
    ):
        read_header(tmp_path / "model.safetensors")
