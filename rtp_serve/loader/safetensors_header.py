"""Reads the header of a safetensors file and believes nothing that it says.

    header length, uint64 little-endian | JSON header | tensor data

A file that passes has its tensors one behind the other, without hole or overlap, from the header's
end to the file's; each one's bytes are those of its shape and type. Everything else is one
CheckpointError that names the file, the tensor, the value and what is allowed. No torch.
"""

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rtp_serve.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""

DTYPE_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E4M3": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8,
    "U8": 8,
    "I8": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "C64": 64,
}
"""Types of the format, by their name in the header; an element's size."""

_LENGTH = struct.Struct("<Q")
_METADATA = "__metadata__"
_FIELDS = ("dtype", "shape", "data_offsets")
_MAX_SHOWN = 80
"""Characters of a value that a message repeats: a name may be as long as the header."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as a file has it: row-major, little-endian."""

    name: str
    file: Path
    dtype: str
    """A key of `DTYPE_BITS`."""

    shape: tuple[int, ...]
    offset: int
    """Of its first byte in the file."""

    num_bytes: int


def read_header(path: Path) -> tuple[StoredTensor, ...]:
    """The file's tensors by rising offset. Raises CheckpointError."""
    if path.exists() and not path.is_file():
        _refuse(path, "it is not a regular file")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data_start = _data_start(path, file.read(_LENGTH.size), size)
            header = file.read(data_start - _LENGTH.size)
    except OSError as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
    return parse_header(path, header, size)


def parse_header(path: Path, header: bytes, file_bytes: int) -> tuple[StoredTensor, ...]:
    """What `header`, the JSON alone, says of the tensors in a file of `file_bytes`.

    Raises CheckpointError.
    """
    data_start = _LENGTH.size + len(header)
    data_bytes = file_bytes - data_start
    if data_bytes < 0:
        _refuse(path, f"it ends after {file_bytes} bytes, its header after {data_start}")
    entries = _decode(path, header)
    _check_metadata(path, entries.pop(_METADATA, None))
    tensors = [_tensor(path, name, entry, data_start) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.num_bytes))
    end, previous = data_start, "the header"
    for tensor in tensors:
        if tensor.offset != end:
            kind = "overlaps" if tensor.offset < end else "leaves a hole after"
            _refuse(
                path,
                f"tensor {shown(tensor.name)} {kind} {shown(previous)}: it begins at byte "
                f"{tensor.offset - data_start} of the data, expected {end - data_start}",
            )
        end, previous = end + tensor.num_bytes, tensor.name
    if end != file_bytes:
        _refuse(path, f"its tensors take {end - data_start} bytes, it has {data_bytes} for them")
    return tuple(tensors)


def shown(value: object) -> str:
    """A value from a file as a message repeats it: short, on one line, printable."""
    text = value if isinstance(value, str) else repr(value)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _data_start(path: Path, length: bytes, file_bytes: int) -> int:
    if len(length) < _LENGTH.size:
        _refuse(path, f"it has {len(length)} bytes, at least {_LENGTH.size} are needed")
    (header_bytes,) = _LENGTH.unpack(length)
    limit = min(MAX_HEADER_BYTES, file_bytes - _LENGTH.size)
    if header_bytes > limit:
        _refuse(path, f"its header has {header_bytes} bytes, at most {limit} are possible")
    return _LENGTH.size + int(header_bytes)


def _decode(path: Path, header: bytes) -> dict[str, Any]:
    """The JSON object, each key of it once."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) == len(pairs):
            return found
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                _refuse(path, f"its header has {shown(key)} twice")
            seen.add(key)
        return found

    def no_number(constant: str) -> NoReturn:
        _refuse(path, f"its header has {constant}, which is not JSON")

    if not header.startswith(b"{"):
        _refuse(path, f"its header begins with {shown(header[:8])}, expected b'{{'")
    try:
        entries = json.loads(
            header.decode("utf-8"), object_pairs_hook=unique, parse_constant=no_number
        )
    except (ValueError, RecursionError) as error:
        _refuse(path, f"its header is not JSON: {shown(str(error))}")
    assert isinstance(entries, dict), "JSON that begins with a brace is an object"
    return entries


def _check_metadata(path: Path, metadata: object) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict):
        _refuse(path, f"{_METADATA} is {shown(metadata)}, expected an object")
    for key, value in metadata.items():
        if not isinstance(value, str):
            _refuse(path, f"{_METADATA}: {shown(key)} is {shown(value)}, expected a string")


def _tensor(path: Path, name: str, entry: object, data_start: int) -> StoredTensor:
    def refuse(problem: str) -> NoReturn:
        _refuse(path, f"tensor {shown(name)}: {problem}")

    if not isinstance(entry, dict):
        refuse(f"it is {shown(entry)}, expected an object")
    absent = [field for field in _FIELDS if field not in entry]
    if absent:
        refuse(f"it has no {' and no '.join(absent)}")
    dtype, shape, offsets = (entry[field] for field in _FIELDS)
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        refuse(f"dtype is {shown(dtype)}, allowed: {', '.join(DTYPE_BITS)}")
    if not _are_sizes(shape):
        refuse(f"shape is {shown(shape)}, expected a list of integers from 0")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        refuse(f"data_offsets is {shown(offsets)}, expected [begin, end], 0 <= begin <= end")
    num_bytes = offsets[1] - offsets[0]
    if _num_bits(dtype, shape, num_bytes * 8) != num_bytes * 8:
        refuse(f"{num_bytes} bytes are not those of {dtype} {shown(shape)}")
    return StoredTensor(name, path, dtype, tuple(shape), data_start + offsets[0], num_bytes)


def _are_sizes(values: object) -> bool:
    """Whether it is a list of plain integers, none negative. In Python True is an integer too."""
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _num_bits(dtype: str, shape: list[int], limit: int) -> int:
    """Of a tensor; something above `limit` as soon as it is, for a shape may be endless."""
    if 0 in shape:
        return 0
    bits = DTYPE_BITS[dtype]
    for size in shape:
        bits *= size
        if bits > limit:
            break
    return bits


def _refuse(path: Path, problem: str) -> NoReturn:
    raise CheckpointError(f"{path} is not a safetensors file: {problem}")
