"""The bytes of a file's tensors: written, digested, compared.

They are read with `pread`, not through a mapping: a bad disk or a file cut short is then an error
and not a signal that ends the process.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rtp_serve.errors import CorruptWeights
from rtp_serve.loader.store.format import Header, TensorEntry, encode, with_digests

_PIECE_BYTES = 4 << 20
_DIGEST_BYTES = 32


def _free_bytes(descriptor: int) -> int:
    return shutil.disk_usage(descriptor).free


@dataclass(frozen=True, slots=True)
class FileIO:
    """The calls that can fail for want of space or by a broken disk, and the one that asks."""

    reserve: Callable[[int, int, int], None] = os.posix_fallocate
    write: Callable[[int, memoryview | bytes, int], int] = os.pwrite
    sync: Callable[[int], None] = os.fsync
    free_bytes: Callable[[int], int] = _free_bytes


def write_payload(
    descriptor: int, header: Header, buffers: Iterable[memoryview], io: FileIO
) -> None:
    """Reserve the whole file, put the tensors in place and on disk. `buffers` are theirs, in order.

    At most half of what is free on the disk is taken. What the disk refuses may be gone from memory
    as well, so nothing may map the file before this ends.
    """
    free_bytes = io.free_bytes(descriptor)
    if header.total_bytes > free_bytes // 2:
        message = f"{header.total_bytes} bytes are more than half of the {free_bytes} that are free"
        raise OSError(errno.ENOSPC, message)
    io.reserve(descriptor, 0, header.total_bytes)
    start = header.payload_start
    for tensor, buffer in zip(header.tensors, buffers, strict=True):
        assert buffer.nbytes == tensor.num_bytes, f"{tensor.path}: {buffer.nbytes} bytes"
        _write_all(descriptor, buffer, start + tensor.offset, io)
    io.sync(descriptor)


def seal(descriptor: int, header: Header, io: FileIO) -> None:
    """Write the header, with digests of what the payload is now, and put it on disk."""
    digests = [tensor_digest(descriptor, header, tensor) for tensor in header.tensors]
    _write_all(descriptor, memoryview(encode(with_digests(header, digests))), 0, io)
    io.sync(descriptor)


def check_payload(descriptor: int, header: Header) -> None:
    """Raises CorruptWeights naming the first tensor that is not what was written."""
    for tensor in header.tensors:
        name = f"{tensor.kind} {tensor.path}"
        try:
            digest = tensor_digest(descriptor, header, tensor)
        except OSError as error:
            raise CorruptWeights(f"{name} cannot be read: {error}") from error
        if digest != tensor.digest:
            raise CorruptWeights(f"{name} has another digest than was written")


def tensor_digest(descriptor: int, header: Header, tensor: TensorEntry) -> str:
    """Of the bytes that the file has now; a file that ends early gives another digest."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    piece = memoryview(bytearray(min(_PIECE_BYTES, tensor.num_bytes)))
    position = header.payload_start + tensor.offset
    end = header.payload_start + tensor.end
    while position < end:
        num_read = os.preadv(descriptor, [piece[: end - position]], position)
        if not num_read:
            break
        digest.update(piece[:num_read])
        position += num_read
    return digest.hexdigest()


def _write_all(descriptor: int, buffer: memoryview, position: int, io: FileIO) -> None:
    while buffer.nbytes:
        written = io.write(descriptor, buffer, position)
        buffer, position = buffer[written:], position + written
