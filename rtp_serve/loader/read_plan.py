"""Which bytes of which files are read, and in what order. Pure: no file is touched, no torch.

    file     | header | tensor a | tensor b      | c |  not wanted  | tensor d                |
    reads             |         read 0   |   read 1  |              |  read 2   |    read 3   |
    pieces            |    a     |   b   |   b   | c |              |     d     |      d      |

A read goes from one multiple of the alignment to another, as direct I/O wants it; so the same page
may be in two neighbours. Tensors are cut between units only, which are a few rows, the same ones
whoever reads them and with what.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rtp_serve.loader.safetensors_header import StoredTensor

ALIGNMENT = 4096
"""Of reads in a file and of their memory, in bytes: a page, and no less than any disk's block."""


@dataclass(frozen=True, slots=True)
class ReadSizes:
    """How tensors become reads."""

    read_bytes: int = 4 << 20
    """The most that a read takes; more only where a single row has more. Of `ALIGNMENT`."""

    gap_bytes: int = 128 << 10
    """What lies between two wanted tensors is read along if it is no more than this."""

    def __post_init__(self) -> None:
        assert self.read_bytes > 0, f"read_bytes is {self.read_bytes}"
        assert self.read_bytes % ALIGNMENT == 0, f"{self.read_bytes} is no multiple of {ALIGNMENT}"


DEFAULT_SIZES = ReadSizes()

_UNIT_BYTES = 64 << 10
"""A digest of so many at once costs little more than one of all."""


def row_bytes_of(tensor: StoredTensor) -> int:
    """The rows of a vector are its elements."""
    num_rows = tensor.shape[0] if tensor.shape else 1
    return tensor.num_bytes // num_rows if num_rows else 0


def rows_per_unit(tensor: StoredTensor) -> int:
    """A power of two; of the row's size alone."""
    num_rows = _UNIT_BYTES // max(1, row_bytes_of(tensor))
    return 1 << max(0, num_rows.bit_length() - 1)


@dataclass(frozen=True, slots=True)
class TensorRows:
    """Rows of a tensor that are wanted. The rows of a vector are its elements."""

    tensor: StoredTensor
    begin: int
    end: int

    @classmethod
    def all_of(cls, tensor: StoredTensor) -> "TensorRows":
        return cls(tensor, 0, tensor.shape[0] if tensor.shape else 1)

    def in_units(self) -> "TensorRows":
        """These rows and those that share a unit with the first or the last of them."""
        if self.begin == self.end:
            return self
        unit, num_rows = rows_per_unit(self.tensor), TensorRows.all_of(self.tensor).end
        end = min(-(-self.end // unit) * unit, num_rows)
        return TensorRows(self.tensor, self.begin // unit * unit, end)

    @property
    def row_bytes(self) -> int:
        assert 0 <= self.begin <= self.end <= TensorRows.all_of(self.tensor).end, f"rows of {self}"
        return row_bytes_of(self.tensor)


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a tensor that come with one read."""

    tensor: StoredTensor
    first_row: int
    num_rows: int
    start: int
    """Of its first byte in the read."""

    num_bytes: int


@dataclass(frozen=True, slots=True)
class Read:
    """A range of a file, read at once."""

    file: Path
    offset: int
    """A multiple of `ALIGNMENT`."""

    num_bytes: int
    """A multiple of `ALIGNMENT`: it may go beyond the end of the file."""

    pieces: tuple[Piece, ...]
    """By rising start; at least one."""

    @property
    def needed_bytes(self) -> int:
        """From its start to the end of the last piece."""
        return self.pieces[-1].start + self.pieces[-1].num_bytes

    @property
    def wanted_bytes(self) -> int:
        """Of the pieces alone."""
        return sum(piece.num_bytes for piece in self.pieces)


def plan_reads(wanted: Iterable[TensorRows], sizes: ReadSizes = DEFAULT_SIZES) -> tuple[Read, ...]:
    """Reads of every byte of `wanted` (each tensor once), sorted by file and offset.

    Tensors without bytes need no read.
    """
    reads: list[Read] = []
    current = _OpenRead()
    for rows in sorted(wanted, key=lambda rows: (str(rows.tensor.file), rows.tensor.offset)):
        tensor, row, row_bytes = rows.tensor, rows.begin, rows.row_bytes
        unit = rows_per_unit(tensor)
        if unit * row_bytes > sizes.read_bytes - ALIGNMENT:
            unit = 1
        while row < rows.end and row_bytes:
            offset = tensor.offset + row * row_bytes
            least = min(rows.end, row // unit * unit + unit) - row
            if not current.reaches(tensor.file, offset, least * row_bytes, sizes):
                reads += current.close()
                current = _OpenRead(tensor.file, offset)
            until = row + current.room(offset, sizes) // row_bytes
            until = rows.end if until >= rows.end else until // unit * unit
            taken = max(least, until - row)
            current.add(tensor, row, taken, row_bytes)
            row += taken
    return tuple(reads + current.close())


class _OpenRead:
    """A read that may get more pieces."""

    def __init__(self, file: Path | None = None, offset: int = 0) -> None:
        self._file = file
        self._begin = offset // ALIGNMENT * ALIGNMENT
        self._end = offset
        self._pieces: list[Piece] = []

    def reaches(self, file: Path, offset: int, num_bytes: int, sizes: ReadSizes) -> bool:
        """Whether rows at `offset` belong to this read."""
        return (
            file == self._file
            and offset - self._end <= sizes.gap_bytes
            and self.room(offset, sizes) >= num_bytes
        )

    def room(self, offset: int, sizes: ReadSizes) -> int:
        """Bytes that it can take from `offset` on."""
        return self._begin + sizes.read_bytes - offset

    def add(self, tensor: StoredTensor, row: int, num_rows: int, row_bytes: int) -> None:
        start, num_bytes = tensor.offset + row * row_bytes - self._begin, num_rows * row_bytes
        self._pieces.append(Piece(tensor, row, num_rows, start, num_bytes))
        self._end = self._begin + start + num_bytes

    def close(self) -> list[Read]:
        """The read, if it has any piece."""
        if self._file is None:
            return []
        num_bytes = -(-(self._end - self._begin) // ALIGNMENT) * ALIGNMENT
        return [Read(self._file, self._begin, num_bytes, tuple(self._pieces))]
