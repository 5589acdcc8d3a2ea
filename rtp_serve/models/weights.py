"""What a model wants from a checkpoint, as data, and what it gets back.

A model lists `WeightSpec`s; the loader finds, checks, converts and packs their tensors and hands
them over as `Weights`. Neither knows the other: no file here, no layer there.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from rtp_serve import ops
from rtp_serve.models.layers.linear import PackedLinear


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of the checkpoint, or the rows and columns of it that one rank wants."""

    name: str
    shape: tuple[int, ...]
    """Of the whole tensor."""

    rows: tuple[int, int] | None = None
    """[begin, end); None is all. The rows of a vector are its elements."""

    columns: tuple[int, int] | None = None
    """[begin, end); None is all."""

    @property
    def row_range(self) -> tuple[int, int]:
        return self.rows or (0, self.shape[0])

    @property
    def num_rows(self) -> int:
        begin, end = self.row_range
        return end - begin

    @property
    def num_columns(self) -> int:
        """Of a matrix."""
        begin, end = self.columns or (0, self.shape[1])
        return end - begin


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """One weight of the model: checkpoint tensors stacked along their rows.

    Matrices [rows, columns] are packed for the linear kernels, vectors [size] stay plain.
    """

    path: str
    """Where it goes in the model: `layers.0.qkv_proj`."""

    parts: tuple[TensorSpec, ...]
    biases: tuple[TensorSpec, ...] = ()

    has_screen: bool = False
    """See `ops.PackedWeight.screen`."""

    has_codes: bool = False
    """Coded where its elements fit, see `ops.with_codes`."""

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        return self.parts + self.biases

    @property
    def num_rows(self) -> int:
        return sum(tensor.num_rows for tensor in self.parts)

    @property
    def num_columns(self) -> int:
        """Of a matrix."""
        return self.parts[0].num_columns

    @property
    def is_matrix(self) -> bool:
        return len(self.parts[0].shape) == 2


def matrix(
    path: str, rows: Mapping[str, int], num_columns: int, has_bias: bool = False
) -> WeightSpec:
    """The spec of a linear. `rows` maps each stacked checkpoint module to its number of rows."""
    parts = tuple(TensorSpec(f"{name}.weight", (size, num_columns)) for name, size in rows.items())
    biases = tuple(TensorSpec(f"{name}.bias", (size,)) for name, size in rows.items())
    return WeightSpec(path, parts, biases if has_bias else ())


def vector(path: str, name: str, size: int) -> WeightSpec:
    """The spec of a norm's weight."""
    return WeightSpec(path, (TensorSpec(f"{name}.weight", (size,)),))


class Weights:
    """The loaded weights of one model, by path."""

    def __init__(
        self, matrices: dict[str, ops.PackedWeight], vectors: Mapping[str, ops.Array]
    ) -> None:
        self._matrices = matrices
        self._vectors = vectors

    def matrix(self, path: str) -> ops.PackedWeight:
        return self._matrices[path]

    def linear(self, path: str) -> PackedLinear:
        return PackedLinear(self._matrices[path])

    def vector(self, path: str) -> ops.Array:
        return self._vectors[path]
