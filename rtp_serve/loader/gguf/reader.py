"""A GGUF file: its metadata and its tensors, every length checked against the file's size.

Knows the container only: neither architectures nor tokenizers. The `gguf` library's own reader
builds an array object per metadata element (seconds for a vocabulary) and follows lengths past the
end of a truncated file; its tables and its dequantisation are used here.

    magic, version | counts | metadata: key, type, value … | tensors: name, shape, type, offset … |
    padding to the alignment | data: tensor at its offset, rows contiguous
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import gguf
import numpy as np
from numpy.typing import NDArray

from rtp_serve.errors import CheckpointError

T = TypeVar("T", bool, int, float, str, list[Any])

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 4


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """A matrix (or vector) as stored: quantised along its rows."""

    name: str
    shape: tuple[int, ...]
    """Outermost dimension first, as PyTorch has it."""

    kind: gguf.GGMLQuantizationType
    rows: NDArray[np.uint8]
    """[num_rows, bytes of a row], mapped from the file. A vector is one row."""

    def dequantize(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start:stop` as [stop - start, row elements], float32."""
        try:
            values: NDArray[np.float32] = gguf.dequantize(self.rows[start:stop], self.kind)
        except NotImplementedError as error:
            raise CheckpointError(
                f"GGUF tensor {self.name!r}: {self.kind.name} cannot be dequantised"
            ) from error
        return values


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """What `read_gguf` found. Tensor data stays on disk until it is asked for."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """A metadata value of the given type. Raises CheckpointError if missing or of another."""
        value = self.metadata.get(key, default)
        if value is None:
            raise CheckpointError(f"{self.path}: GGUF metadata {key} is missing")
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise CheckpointError(
                f"{self.path}: GGUF metadata {key} must be {kind.__name__}, "
                f"got {type(value).__name__}"
            )
        return value


def read_gguf(path: Path) -> GGUFFile:
    """Read the header and map the tensors. Raises CheckpointError for a malformed file."""
    try:
        data = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise CheckpointError(f"cannot read {path}: {error}") from error
    cursor = _Cursor(path, data)
    num_tensors, num_fields = _read_preamble(cursor)
    metadata: dict[str, Any] = {}
    for _ in range(num_fields):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.number("I"))
    headers = [_read_tensor_header(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0:
        raise CheckpointError(f"{path}: general.alignment must be positive, got {alignment!r}")
    base = -(-cursor.offset // alignment) * alignment
    tensors = {header.name: _map_tensor(cursor, base, header) for header in headers}
    if len(tensors) != num_tensors:
        raise CheckpointError(f"{path}: two tensors have the same name")
    return GGUFFile(path, metadata, tensors)


class _Cursor:
    """Reads forward through the file; the end of the file is a CheckpointError."""

    def __init__(self, path: Path, data: NDArray[np.uint8]) -> None:
        self.path = path
        self.offset = 0
        self._view = data.data

    def slice(self, start: int, num_bytes: int) -> memoryview:
        end = start + num_bytes
        if end > len(self._view):
            raise CheckpointError(
                f"{self.path} is truncated or malformed: byte {end} is wanted, "
                f"the file has {len(self._view)}"
            )
        return self._view[start:end]

    def take(self, num_bytes: int) -> memoryview:
        piece = self.slice(self.offset, num_bytes)
        self.offset += num_bytes
        return piece

    def number(self, code: str) -> int:
        return int(self.numbers(code, 1)[0])

    def numbers(self, code: str, count: int) -> tuple[Any, ...]:
        piece = self.take(count * struct.calcsize(code))
        return struct.unpack(f"<{count}{code}", piece)

    def string(self) -> str:
        piece = self.take(self.number("Q"))
        try:
            return str(piece, "utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path}: GGUF string is not UTF-8: {error}") from error

    def value(self, kind: int) -> Any:
        if kind == _ARRAY:
            return self._array()
        if kind == _STRING:
            return self.string()
        return self.numbers(self._scalar_code(kind), 1)[0]

    def _array(self) -> list[Any]:
        kind, count = self.number("I"), self.number("Q")
        if kind == _STRING:
            return [self.string() for _ in range(count)]
        return list(self.numbers(self._scalar_code(kind), count))

    def _scalar_code(self, kind: int) -> str:
        code = _SCALARS.get(kind)
        if code is None:
            raise CheckpointError(f"{self.path}: GGUF metadata type {kind} is not known")
        return code


@dataclass(frozen=True, slots=True)
class _TensorHeader:
    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def _read_preamble(cursor: _Cursor) -> tuple[int, int]:
    """(number of tensors, number of metadata fields)."""
    if bytes(cursor.take(4)) != b"GGUF":
        raise CheckpointError(f"{cursor.path} is not a GGUF file")
    version = cursor.number("I")
    if version not in (2, 3):
        raise CheckpointError(
            f"{cursor.path}: GGUF version {version} is not supported; supported: 2, 3 little-endian"
        )
    return cursor.number("Q"), cursor.number("Q")


def _read_tensor_header(cursor: _Cursor) -> _TensorHeader:
    name = cursor.string()
    num_dims = cursor.number("I")
    if not 1 <= num_dims <= _MAX_DIMS:
        raise CheckpointError(f"{cursor.path}: tensor {name!r} has {num_dims} dimensions")
    shape = tuple(reversed(cursor.numbers("Q", num_dims)))
    return _TensorHeader(name, shape, cursor.number("I"), cursor.number("Q"))


def _map_tensor(cursor: _Cursor, base: int, header: _TensorHeader) -> GGUFTensor:
    try:
        kind = gguf.GGMLQuantizationType(header.kind)
    except ValueError as error:
        raise CheckpointError(f"{cursor.path}: tensor {header.name!r}: {error}") from error
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    *outer, row_size = header.shape
    if min(header.shape) < 1 or row_size % block_size:
        raise CheckpointError(
            f"{cursor.path}: tensor {header.name!r} of shape {list(header.shape)} does not fit "
            f"blocks of {block_size} ({kind.name})"
        )
    num_rows = int(np.prod(outer, dtype=object)) if outer else 1
    row_bytes = row_size // block_size * block_bytes
    piece = cursor.slice(base + header.offset, num_rows * row_bytes)
    rows = np.frombuffer(piece, np.uint8).reshape(num_rows, row_bytes)
    return GGUFTensor(header.name, header.shape, kind, rows)
