import os
import struct
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import msgspec
import pytest

from rtp_serve.errors import CorruptWeights
from rtp_serve.loader.store.directory import StoreDirectory
from rtp_serve.loader.store.format import (
    PAGE_BYTES,
    TENSOR_ALIGNMENT,
    Header,
    encode,
    lay_out,
    read_header,
)
from tests.unit.loader.store_files import TENSORS, flip, make_header, make_key, write_file

PREAMBLE_BYTES = 64


def read(path: Path) -> Header:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return read_header(descriptor)
    finally:
        os.close(descriptor)


def write_header_alone(path: Path, header: Header) -> Path:
    """A well-formed file of this header over a payload of zeros."""
    path.write_bytes(encode(header))
    os.truncate(path, header.total_bytes)
    return path


def test_a_header_comes_back_as_it_was_written(tmp_path: Path):
    found = read(write_file(StoreDirectory(tmp_path)))
    assert found.key == make_key()
    assert found.source == "/models/m"
    places = [(tensor.path, tensor.kind, tensor.dtype, tensor.shape) for tensor in found.tensors]
    assert places == [(each.path, each.kind, each.dtype, each.shape) for each in TENSORS]
    assert len({tensor.digest for tensor in found.tensors}) == len(TENSORS)


def test_tensors_lie_aligned_and_apart_in_whole_pages():
    header = make_header()
    assert header.payload_start % PAGE_BYTES == 0
    assert header.payload_start >= len(encode(header))
    assert header.total_bytes % PAGE_BYTES == 0
    end = 0
    for tensor in header.tensors:
        assert tensor.offset % TENSOR_ALIGNMENT == 0
        assert end <= tensor.offset < end + TENSOR_ALIGNMENT
        end = tensor.end
    assert header.payload_start + end <= header.total_bytes


def test_a_file_cut_at_any_length_is_refused(tmp_path: Path):
    path = write_file(StoreDirectory(tmp_path))
    whole = path.read_bytes()
    cuts = {0, 1, 7, 8, 20, 63, 64, 65, 300, 4095, 4096, 4097, len(whole) // 2, len(whole) - 1}
    for length in sorted(cuts):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptWeights):
            read(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CorruptWeights, match="bytes of"):
        read(path)
    path.write_bytes(whole)
    assert read(path).key == make_key()


def test_every_flipped_byte_of_preamble_and_header_is_noticed(tmp_path: Path):
    path = write_file(StoreDirectory(tmp_path))
    for position in range(len(encode(make_header()))):
        flip(path, position)
        with pytest.raises(CorruptWeights):
            read(path)
        flip(path, position)
    assert read(path).key == make_key()


def test_another_version_is_refused_by_name(tmp_path: Path):
    path = write_file(StoreDirectory(tmp_path))
    with path.open("r+b") as file:
        file.seek(8)
        file.write(struct.pack("<I", 99))
    with pytest.raises(CorruptWeights, match="format version 99, this is 2"):
        read(path)


def test_other_files_are_refused(tmp_path: Path):
    path = tmp_path / "other"
    path.write_bytes(b"not weights at all" * 100)
    with pytest.raises(CorruptWeights, match="not a file of the weight store"):
        read(path)


def place(header: Header, index: int, **changed: object) -> Header:
    tensors = list(header.tensors)
    tensors[index] = msgspec.structs.replace(tensors[index], **changed)
    return msgspec.structs.replace(header, tensors=tuple(tensors))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda header: place(header, 1, offset=0), "lies over the tensor before it"),
        (lambda header: place(header, 1, offset=header.tensors[1].offset + 1), "lies at"),
        (lambda header: place(header, 0, offset=-64), "lies at -64"),
        (lambda header: place(header, 0, shape=(1, -5, 32, 2)), "is bfloat16"),
        (lambda header: place(header, 0, shape=(1, 1 << 60, 32, 2)), "lies over"),
    ],
)
def test_a_signed_header_that_makes_no_sense_is_refused_all_the_same(
    tmp_path: Path, spoil: Callable[[Header], Header], message: str
):
    good = write_header_alone(tmp_path / "good", make_header())
    assert read(good)
    header = spoil(make_header())
    path = write_header_alone(tmp_path / "bad", header)
    with pytest.raises(CorruptWeights, match=message):
        read(path)


def test_a_signed_header_of_an_unknown_type_or_shape_is_refused(tmp_path: Path):
    data = encode(make_header())[PREAMBLE_BYTES:].replace(b'"float32"', b'"float64"')
    for body in (data, b"[]", b"{", b'{"key":3}', b"\xff\xfe"):
        path = tmp_path / "bad"
        path.write_bytes(signed(body, total=8192))
        os.truncate(path, 8192)
        with pytest.raises(CorruptWeights, match=r"malformed|float64"):
            read(path)


def test_a_header_longer_than_the_file_is_not_read(tmp_path: Path):
    path = tmp_path / "bad"
    path.write_bytes(signed(b"{}", total=8192, claimed=1 << 31))
    os.truncate(path, 8192)
    with pytest.raises(CorruptWeights, match="claims 2147483648 bytes"):
        read(path)


def signed(body: bytes, total: int, claimed: int | None = None) -> bytes:
    """Preamble and body with a digest that fits."""
    claimed = len(body) if claimed is None else claimed
    unsigned = struct.pack("<8sIIQQ", b"RTPWGHTS", 2, claimed, 4096, total)
    return unsigned + blake2b(unsigned + body, digest_size=32).digest() + body


def test_a_model_without_weights_has_a_header_alone():
    assert lay_out(make_key(), "", 0, ()).total_bytes == PAGE_BYTES
