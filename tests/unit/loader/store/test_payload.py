import errno
import os
from pathlib import Path

import pytest

from rtp_serve.errors import CorruptWeights
from rtp_serve.loader.store.directory import StoreDirectory
from rtp_serve.loader.store.format import Header, read_header
from rtp_serve.loader.store.payload import FileIO, check_payload
from tests.unit.loader.store_files import (
    flip,
    make_buffers,
    make_header,
    write_draft,
    write_file,
)


def check(path: Path) -> Header:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        header = read_header(descriptor)
        check_payload(descriptor, header)
    finally:
        os.close(descriptor)
    return header


def test_what_is_read_is_what_was_written(tmp_path: Path):
    path = write_file(StoreDirectory(tmp_path))
    header, content = check(path), path.read_bytes()
    assert len(content) == header.total_bytes
    for tensor, buffer in zip(header.tensors, make_buffers(header), strict=True):
        start = header.payload_start + tensor.offset
        assert content[start : start + tensor.num_bytes] == buffer


def test_a_flipped_byte_of_any_tensor_is_noticed_and_the_tensor_named(tmp_path: Path):
    path = write_file(StoreDirectory(tmp_path))
    header = check(path)
    for tensor in header.tensors:
        for place in (0, tensor.num_bytes // 2, tensor.num_bytes - 1):
            flip(path, header.payload_start + tensor.offset + place)
            with pytest.raises(CorruptWeights, match=f"{tensor.kind} {tensor.path} has another"):
                check(path)
            flip(path, header.payload_start + tensor.offset + place)
    check(path)


def test_a_file_that_is_cut_short_while_it_is_checked_is_damaged(tmp_path: Path):
    path = write_file(StoreDirectory(tmp_path))
    descriptor = os.open(path, os.O_RDONLY)
    header = read_header(descriptor)
    os.truncate(path, header.payload_start + header.tensors[-1].offset + 1)
    with pytest.raises(CorruptWeights, match="matrix lm_head has another digest"):
        check_payload(descriptor, header)
    os.close(descriptor)


def test_a_file_that_cannot_be_read_is_damaged(tmp_path: Path):
    path = write_file(StoreDirectory(tmp_path))
    header = check(path)
    closed = os.open(path, os.O_WRONLY)
    with pytest.raises(CorruptWeights, match=r"qkv cannot be read: .*Bad file descriptor"):
        check_payload(closed, header)
    os.close(closed)


def test_short_writes_are_continued(tmp_path: Path):
    def write_some(descriptor: int, buffer: memoryview | bytes, position: int) -> int:
        return os.pwrite(descriptor, buffer[:13], position)

    store = StoreDirectory(tmp_path)
    check(write_draft(store, make_header(), FileIO(write=write_some)))


def test_the_whole_file_is_reserved_before_the_first_byte(tmp_path: Path):
    def refuse(descriptor: int, offset: int, length: int) -> None:
        assert length == make_header().total_bytes
        raise OSError(errno.ENOSPC, "No space left on device")

    store = StoreDirectory(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        write_draft(store, make_header(), FileIO(reserve=refuse))
    assert store.draft(make_header().key.name).stat().st_size == 0


def test_at_most_half_of_the_free_disk_is_taken(tmp_path: Path):
    store, header = StoreDirectory(tmp_path), make_header()
    with pytest.raises(OSError, match="more than half"):
        write_draft(store, header, FileIO(free_bytes=lambda _: 2 * header.total_bytes - 1))
    store.draft(header.key.name).unlink()
    write_draft(store, header, FileIO(free_bytes=lambda _: 2 * header.total_bytes))
